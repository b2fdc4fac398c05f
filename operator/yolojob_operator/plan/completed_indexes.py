"""Sets of worker indices in a few characters, as in the completedIndexes of a batch/v1 Job: "0,2-4". Pure."""

from __future__ import annotations

from collections.abc import Iterable


def join(indexes: Iterable[int]) -> str:
    """In order; three or more that follow each other are a range."""
    runs: list[list[int]] = []
    for index in sorted(set(indexes)):
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    parts = [[f"{run[0]}-{run[-1]}"] if len(run) > 2 else [str(index) for index in run] for run in runs]
    return ",".join(part for run in parts for part in run)


def split(text: str, size: int) -> set[int]:
    """Those below `size`; what cannot be read is none."""
    found: set[int] = set()
    for part in text.split(",") if text else ():
        first, _, last = part.partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            found.update(range(int(first), min(int(last or first), size - 1) + 1))
    return found
