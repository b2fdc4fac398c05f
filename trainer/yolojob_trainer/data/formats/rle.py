"""Decodes the run lengths by which COCO describes masks.

pycocotools decodes them in C and trusts their sizes. These come from a file that anybody may have written.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from yolojob_trainer.data.formats.annotation import Points

MAX_PIXELS = 100_000_000
MIN_POINTS = 3


def decode(mask: dict[str, Any]) -> npt.NDArray[np.uint8]:
    """Return the mask, (height, width), of zeros and ones.

    Args:
        mask: `size`: [height, width], and `counts`: the lengths of the runs of zeros and ones in turn, column by
            column; a list, or a text in COCO's compressed form.

    Raises:
        ValueError: it is not valid.
    """
    height, width = (int(value) for value in mask["size"])
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise ValueError(f"a mask of {height} x {width} pixels")
    counts = mask["counts"]
    runs = _lengths(counts) if isinstance(counts, str) else [int(count) for count in counts]
    if min(runs, default=0) < 0 or sum(runs) != height * width:
        raise ValueError("the run lengths of a mask do not fill it")
    values = np.arange(len(runs), dtype=np.uint8) % 2
    return np.repeat(values, runs).reshape(width, height).T


def outlines(mask: npt.NDArray[np.uint8]) -> list[Points]:
    """Return the outer outlines of a mask's parts."""
    found, _ = cv2.findContours(np.ascontiguousarray(mask), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [contour.reshape(-1, 2).astype(np.float64) for contour in found if len(contour) >= MIN_POINTS]


def _lengths(text: str) -> list[int]:
    """Return the run lengths of COCO's compressed form.

    Each is a number of five bits in each character, the sixth says whether another one follows. From the fourth on, it
    is the difference to the length two before (pycocotools, common/maskApi.c, rleFrString).
    """
    lengths: list[int] = []
    number = shift = 0
    for character in text.encode():
        bits = character - 48
        if not 0 <= bits < 64 or shift > 30:
            raise ValueError("the run lengths of a mask are not COCO's compressed form")
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << shift
        lengths.append(number + (lengths[-2] if len(lengths) > 2 else 0))
        number = shift = 0
    if shift:
        raise ValueError("the run lengths of a mask end in the middle of a number")
    return lengths
