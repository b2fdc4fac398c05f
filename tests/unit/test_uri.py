"""Quantities and addresses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolojob.api import uri
from yolojob.api.fields import parse_quantity


@pytest.mark.parametrize(
    ("text", "value"),
    [("2", 2), ("500m", 0.5), ("4Gi", 4 << 30), ("1e3", 1000), ("1.5k", 1500), ("0", 0), ("128974848000m", 128974848)],
)
def test_quantities(text: str, value: float) -> None:
    assert parse_quantity(text) == value


@pytest.mark.parametrize("text", ["", "Gi", "4 Gi", "4gi", "-1", "1..2", "inf", "1e999"])
def test_no_quantities(text: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        parse_quantity(text)


@given(st.text(max_size=30))
def test_pattern_and_parser_agree(rest: str) -> None:
    """The API server has the pattern, everyone else the parser."""
    for schemes in (uri.DATASET_SCHEMES, uri.STORAGE_SCHEMES):
        for text in (rest, f"pvc://{rest}", f"pvc://claim/{rest}", f"file://{rest}"):
            if "\n" in text:
                continue
            try:
                uri.parse(text, schemes)
                parsed = True
            except ValueError:
                parsed = False
            assert parsed == bool(re.match(uri.pattern(schemes), text)), text


@pytest.mark.parametrize("path", ["..", "a/..", "../a", "a/../b"])
def test_no_way_out_of_a_claim(path: str) -> None:
    with pytest.raises(ValueError, match=r"without '\.\.'"):
        uri.parse(f"pvc://claim/{path}", ("pvc",))


def test_parts() -> None:
    where = uri.parse("pvc://runs/team/digits/", ("pvc",))
    assert (where.scheme, where.location, where.path) == ("pvc", "runs", "team/digits")
    assert str(where) == "pvc://runs/team/digits/", "as it was written: the API server compares texts"
    assert where.under(Path("/volumes")) == Path("/volumes/runs/team/digits")
