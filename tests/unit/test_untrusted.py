"""Values and paths from files that anybody may have written."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yolojob_trainer.data.untrusted import integer, is_class_name, is_path, is_relative_path


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1),
        (1.0, 1),
        ("1", 1),
        ("1.0", 1),
        ("-7", -7),
        (2**53 + 1, 2**53 + 1),
        (str(2**53 + 1), 2**53 + 1),
        (1.5, None),
        ("1.5", None),
        (True, None),
        (None, None),
        ([], None),
        ("", None),
        ("one", None),
        (float("inf"), None),
        (float("nan"), None),
        ("9" * 31, int(float("9" * 31))),
        pytest.param(1 << 50_000, None, id="huge integer"),
        pytest.param("9" * 50_000, None, id="huge text"),
    ],
)
def test_integer_is_read_from_any_spelling(value: Any, expected: int | None) -> None:
    assert integer(value) == expected


@pytest.mark.parametrize(
    ("text", "path", "relative"),
    [
        ("a/b.jpg", True, True),
        ("größe\u202f1.png", True, True),
        ("/a", True, False),
        ("a/../b", True, False),
        ("a\nb", True, False),
        ("a\0b", False, False),
        ("\ud800", False, False),
        ("x" * 256, False, False),
        ("x/" * 2050, False, False),
    ],
)
def test_path_is_one_that_the_file_system_accepts(text: str, path: bool, relative: bool) -> None:
    assert (is_path(text), is_relative_path(text)) == (path, relative)


@given(st.text() | st.integers() | st.none())
def test_class_name_is_a_printable_text(name: Any) -> None:
    if is_class_name(name):
        assert 0 < len(name) <= 200
        assert len(name.splitlines()) == 1
        name.encode()
