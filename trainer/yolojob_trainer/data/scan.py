"""What upstream's scan of a dataset has found, in words for the user."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

IGNORED = re.compile(r": ignoring (corrupt image/\w+: |image with )")
"""Text in upstream's messages about images that it leaves out, between the image and the reason."""
DUPLICATES = "duplicate labels removed"
EXAMPLES = 3
"""Files that a message names for each reason; the log lists all."""
REASON_CHARACTERS = 200

_ADVICE = {
    "non-normalized or out of bounds": "coordinates must be shares of the image, from 0 to 1, not pixels",
    "labels require 5 columns, 6 columns": "the sixth column is a confidence: remove it",
    "cannot reshape": "rows must be class x y width height, or class and the corners of a polygon",
    "exceeds dataset class count": "names in the data file must list all classes",
    "codec can't decode": "label files must be UTF-8 text",
}
"""What to do about a reason, by a part of upstream's message."""


@dataclass(frozen=True, kw_only=True)
class ScanCounts:
    """Numbers of images by what the scan has found."""

    found: int
    """With a label file."""
    missing: int
    """Without a label file."""
    empty: int
    """With an empty label file."""
    corrupt: int
    """That cannot be used."""
    total: int

    @classmethod
    def from_results(cls, results: tuple[int, ...]) -> ScanCounts:
        """Convert upstream's tuple (found, missing, empty, corrupt, total)."""
        found, missing, empty, corrupt, total = results
        return cls(found=found, missing=missing, empty=empty, corrupt=corrupt, total=total)

    def warnings(self, labelled: int) -> list[str]:
        """Return messages about images without labels. A detector learns from such images that they are empty.

        Args:
            labelled: images with an object of the chosen classes.
        """
        if not labelled:
            return [f"none of {self.total} images has a labelled object, so losses and metrics say nothing"]
        if self.missing:
            return [f"{self.missing} of {self.total} images have no label file; they count as images without objects"]
        return []


def split_messages(messages: list[str], prefix: str) -> tuple[list[str], list[str]]:
    """Return (messages about images that are left out, notes for the user), each in one line and without prefix.

    Upstream also reports each JPEG that it has repaired; here nothing is repaired.
    """
    lines = [one_line(message.removeprefix(prefix)) for message in messages]
    duplicates = [line for line in lines if DUPLICATES in line]
    notes = [f"{len(duplicates)} label file(s) have duplicate rows: {duplicates[0]}"] if duplicates else []
    return [line for line in lines if IGNORED.search(line)], notes


def summarize(left_out: list[str]) -> str:
    """Return the reasons why images are left out: for each the number of images, a few of them, and what to do."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for message in left_out:
        image, _, reason = IGNORED.split(message, maxsplit=1)
        # Numbers and files differ from image to image; the reason is the same.
        by_reason[re.sub(r"\[.*\]|/\S+|-?\d+(\.\d+)?", "N", reason)].append(f"{image}: {reason[:REASON_CHARACTERS]}")
    parts = []
    for examples in sorted(by_reason.values(), key=len, reverse=True):
        more = f" and {len(examples) - EXAMPLES} more like it" if len(examples) > EXAMPLES else ""
        advice = next((text for part, text in _ADVICE.items() if part in examples[0]), "")
        parts.append("; ".join(examples[:EXAMPLES]) + more + (f" ({advice})" if advice else ""))
    if len(parts) > EXAMPLES:
        parts = [*parts[:EXAMPLES], f"and {len(parts) - EXAMPLES} other reasons"]
    return "; ".join(parts)


def one_line(message: str) -> str:
    """Return a message of upstream in one line. For a file that is not an image, upstream reports a missing plugin."""
    return " ".join(message.split()).replace("No module named 'pi_heif'", "cannot identify image file")
