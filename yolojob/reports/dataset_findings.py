"""What a person should know about a dataset before a training: findings from the result of a check. Pure."""

from __future__ import annotations

import enum
import itertools
from dataclasses import dataclass

from yolojob.api.dataset_check import BOX_EDGES, RATIO_EDGES, DatasetCheck, SplitCheck
from yolojob.format import byte_size

TRAIN = "train"
SMALL_SHARE = 0.1
"""Share of objects that are smaller than the finest stride of a YOLO network, from which it is a finding."""
IMBALANCE = 50
"""Ratio of the most frequent to the rarest class, from which it is a finding."""
FEW_OBJECTS = 20
"""Objects of a class, below which a training hardly learns it."""
NAMED = 5
"""Classes that a finding names."""


class Level(enum.StrEnum):
    """How much a finding matters."""

    ERROR = "error"
    """The training does not start."""
    WARNING = "warning"
    """The training starts, and the result is worse or its metrics are wrong."""
    NOTE = "note"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing to know, and what to do about it."""

    level: Level
    message: str


def findings(check: DatasetCheck) -> list[Finding]:
    """Return the findings, those that matter most first."""
    found = [Finding(level=Level.ERROR, message=check.refused)] if check.refused else []
    if check.leak_count:
        same = sum(leak.same_bytes for leak in check.leaks)
        look = "" if same == len(check.leaks) else ", some in another encoding or size"
        found.append(
            _warning(
                f"{check.leak_count} picture(s) are in more than one split{look}: the validation measures what the "
                "model has learnt by heart; remove them from one split"
            )
        )
    for name, split in check.splits.items():
        found += _of_files(name, split)
        found += _of_labels(name, split, check)
    order = list(Level)
    return sorted(found, key=lambda finding: order.index(finding.level))


def overview(check: DatasetCheck) -> tuple[list[str], list[list[str]]]:
    """Return (names of the columns, a row for each split)."""
    columns = ["split", "images", "size", "left out", "no label", "empty", "copies", "objects"]
    rows = [
        [
            name,
            str(split.images),
            byte_size(split.bytes),
            str(split.broken_count),
            *("" if value is None else str(value) for value in (split.without_label, split.empty)),
            str(split.duplicate_count),
            "" if split.objects is None else str(split.objects),
        ]
        for name, split in check.splits.items()
    ]
    return columns, rows


def cost_of_samples(check: DatasetCheck) -> str | None:
    """Return what it costs to make training samples, in one sentence; None if it was not measured."""
    if not check.sample_seconds or not check.decode_seconds:
        return None
    return (
        f"One core reads and decodes an image in {1000 * check.decode_seconds:.1f} ms, and makes a training sample in "
        f"{1000 * check.sample_seconds:.1f} ms: {1 / check.sample_seconds:.0f} images per second and core."
    )


def box_size_labels() -> list[str]:
    """Return the names of the intervals of the sizes of objects."""
    return _intervals([str(edge) for edge in BOX_EDGES])


def ratio_labels() -> list[str]:
    """Return the names of the intervals of widths in shares of heights."""
    return _intervals([f"{edge:g}" for edge in RATIO_EDGES])


def _intervals(edges: list[str]) -> list[str]:
    between = [f"{low}-{high}" for low, high in itertools.pairwise(edges)]
    return [f"< {edges[0]}", *between, f"≥ {edges[-1]}"]


def _warning(message: str) -> Finding:
    return Finding(level=Level.WARNING, message=message)


def _note(message: str) -> Finding:
    return Finding(level=Level.NOTE, message=message)


def _of_files(name: str, split: SplitCheck) -> list[Finding]:
    found = []
    if split.broken_count:
        first = split.broken[0]
        found.append(
            _warning(
                f"{name}: {split.broken_count} of {split.images} image(s) are left out, such as {first.file}: "
                f"{first.reason}"
            )
        )
    if split.duplicate_count:
        message = f"{name}: {split.duplicate_count} image(s) are copies of others"
        found.append(_warning(f"{message} and count double; remove them") if name == TRAIN else _note(message))
    if split.orphan_count:
        found.append(_warning(f"{name}: {split.orphan_count} label file(s) have no image, such as {split.orphans[0]}"))
    if len(split.modes) > 1:
        modes = ", ".join(f"{mode}: {count}" for mode, count in sorted(split.modes.items()))
        found.append(_note(f"{name}: images have several colour modes ({modes}); all are read alike"))
    return found


def _of_labels(name: str, split: SplitCheck, check: DatasetCheck) -> list[Finding]:
    found = []
    if split.without_label:
        found.append(
            _warning(f"{name}: {split.without_label} image(s) have no label file; they count as images without objects")
        )
    if split.empty:
        found.append(_note(f"{name}: {split.empty} image(s) have an empty label file"))
    if split.objects:
        small = split.box_sizes[0] / split.objects
        if small > SMALL_SHARE:
            found.append(
                _warning(
                    f"{name}: {small:.0%} of the objects are smaller than {BOX_EDGES[0]} pixels at "
                    f"spec.train.imgsz: {check.image_size}, the finest stride of the network; raise it, or cut the "
                    "images into tiles"
                )
            )
    if not split.classes:
        return found
    missing = [label for label, count in split.classes.items() if not count]
    if missing:
        found.append(_warning(f"{name}: {len(missing)} class(es) do not occur: {_named(missing)}"))
    few = [label for label, count in split.classes.items() if 0 < count < FEW_OBJECTS]
    if few and name == TRAIN:
        found.append(_warning(f"{name}: {len(few)} class(es) occur less than {FEW_OBJECTS} times: {_named(few)}"))
    counts = [count for count in split.classes.values() if count]
    if counts and max(counts) > IMBALANCE * min(counts) and name == TRAIN:
        found.append(
            _note(
                f"{name}: the most frequent class occurs {max(counts) / min(counts):.0f} times as often as the rarest"
            )
        )
    return found


def _named(labels: list[str]) -> str:
    more = f" and {len(labels) - NAMED} more" if len(labels) > NAMED else ""
    return ", ".join(labels[:NAMED]) + more
