"""URIs of datasets and storage: the parser, and the pattern that the API server uses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolojob.api import uri


@settings(deadline=None)
@given(st.text(max_size=30))
def test_pattern_matches_exactly_what_parse_accepts(rest: str) -> None:
    """The API server validates with the pattern, everything else with the parser."""
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
def test_parse_of_path_out_of_the_claim_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"without '\.\.'"):
        uri.parse(f"pvc://claim/{path}", ("pvc",))


def test_parse_returns_scheme_location_and_path() -> None:
    parsed = uri.parse("pvc://runs/team/digits/", ("pvc",))
    assert (parsed.scheme, parsed.location, parsed.path) == ("pvc", "runs", "team/digits")
    assert str(parsed) == "pvc://runs/team/digits/", "the text is kept: the API server compares texts"
    assert parsed.under(Path("/volumes")) == Path("/volumes/runs/team/digits")
