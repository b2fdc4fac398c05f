"""Masks in run lengths."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.annotated_datasets import compress, encode
from yolojob_trainer.data.formats import rle

pytestmark = pytest.mark.torch


@given(st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=1, max_size=40))
def test_any_mask_is_decoded_from_both_forms_of_run_lengths(rows: list[list[bool]]) -> None:
    mask = np.array(rows, np.uint8)
    runs = encode(mask)
    for counts in (runs, compress(runs)):
        assert np.array_equal(rle.decode({"size": list(mask.shape), "counts": counts}), mask)


@given(st.text(alphabet=[chr(code) for code in range(33, 127)], max_size=60), st.integers(1, 50), st.integers(1, 50))
def test_any_text_as_run_lengths_gives_a_mask_or_an_error(text: str, height: int, width: int) -> None:
    try:
        mask = rle.decode({"size": [height, width], "counts": text})
    except ValueError:
        return
    assert mask.shape == (height, width)
