"""Converts sets of worker indices to and from the compact text of a batch/v1 Job's completedIndexes: "0,2-4". Pure."""

from __future__ import annotations

from collections.abc import Iterable


def join(indexes: Iterable[int]) -> str:
    """The indices in ascending order. Three or more consecutive indices are written as a range."""
    runs: list[list[int]] = []
    for index in sorted(set(indexes)):
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    parts = [[f"{run[0]}-{run[-1]}"] if len(run) > 2 else [str(index) for index in run] for run in runs]
    return ",".join(part for run in parts for part in run)


def split(text: str, size: int) -> set[int]:
    """The indices below `size`. Parts that are not numbers or ranges are skipped."""
    indexes: set[int] = set()
    for part in text.split(",") if text else ():
        first, _, last = part.partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            indexes.update(range(int(first), min(int(last or first), size - 1) + 1))
    return indexes
