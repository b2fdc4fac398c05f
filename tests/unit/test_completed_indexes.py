"""Completed indexes: the text form of a set of worker indexes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yolojob_operator.plan import completed_indexes


@given(st.sets(st.integers(0, 2000)), st.integers(0, 2001))
def test_completed_indexes_joined_and_split_are_unchanged(indexes: set[int], size: int) -> None:
    assert completed_indexes.split(completed_indexes.join(indexes), size) == {n for n in indexes if n < size}


@pytest.mark.parametrize("text", ["-", "a", "1-", "5-2", "1-99999999999", ",,", "1;2", "²"])
def test_completed_indexes_with_invalid_text_are_within_bounds(text: str) -> None:
    assert completed_indexes.split(text, 4) <= {0, 1, 2, 3}
