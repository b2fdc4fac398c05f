"""The tasks of YOLO models, and the metrics that a validation of each reports."""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Mapping


class Task(enum.StrEnum):
    """What a model predicts, by Ultralytics' names."""

    DETECT = "detect"
    SEGMENT = "segment"
    POSE = "pose"
    OBB = "obb"
    CLASSIFY = "classify"
    SEMANTIC = "semantic"
    DEPTH = "depth"


SUFFIXES = {
    "-seg": Task.SEGMENT,
    "-pose": Task.POSE,
    "-obb": Task.OBB,
    "-cls": Task.CLASSIFY,
    "-sem": Task.SEMANTIC,
    "-depth": Task.DEPTH,
}
"""Task of an official model by a part of its name, which ends the name or is followed by a hyphen: yolov8n-seg-p6."""

NAME_BEGIN, NAME_END = "^yolov?[0-9]+[a-z]*", "(-p[0-9]+|-resnet[0-9]+)?[.](pt|safetensors|yaml)"
"""Regular expressions, also in CEL, for what surrounds the suffix in the name of an official model. A name of the
user's own, such as cars-seg.pt, states nothing."""

MAIN_METRICS = ("mAP50-95(M)", "mAP50-95(P)", "mAP50-95(B)", "accuracy_top1", "mIoU", "delta1")
"""The metric that stands for the quality of a model; the first that its validation reports. More is better."""
LABELS = {
    "mAP50(B)": "box mAP50",
    "mAP50-95(B)": "box mAP50-95",
    "mAP50-95(M)": "mask mAP50-95",
    "mAP50-95(P)": "pose mAP50-95",
    "accuracy_top1": "top-1",
    "accuracy_top5": "top-5",
    "mIoU": "mIoU",
    "pixel_acc": "pixel accuracy",
    "delta1": "delta1",
    "abs_rel": "abs rel",
}
"""The metrics that people read first, in their order, with their names for people. B: boxes, M: masks, P: poses."""
PREFIX = "metrics/"
"""Of the metrics in Ultralytics' results.csv."""


def tasks_of_name(model: str) -> list[Task]:
    """Return the tasks that the name of a model states, such as that of yolo26n-seg.pt; as a rule none or one."""
    return [task for suffix, task in SUFFIXES.items() if re.fullmatch(f"{NAME_BEGIN}{suffix}{NAME_END}", model)]


def metrics_by_name(results: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of a validation without Ultralytics' prefix and without values that are not finite.

    Args:
        results: columns of results.csv, or what a validator returns; may hold other values than metrics.
    """
    return {
        name.removeprefix(PREFIX): float(value)
        for name, value in results.items()
        if name.startswith(PREFIX) and math.isfinite(value)
    }


def main_metric(metrics: Mapping[str, float]) -> str | None:
    """Return the name of the metric that stands for the quality of the model; None without one."""
    return next((name for name in MAIN_METRICS if name in metrics), None)


def labelled(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that people read first, by their names for people.

    Those of masks and poses stand beside those of their boxes, so mAP50 is left out.
    """
    only_boxes = not any(name.endswith(("(M)", "(P)")) for name in metrics)
    return {
        label.removeprefix("box ") if only_boxes else label: metrics[name]
        for name, label in LABELS.items()
        if name in metrics and (only_boxes or not name.startswith("mAP50("))
    }


def named_score(metrics: Mapping[str, float]) -> tuple[str, float] | None:
    """Return (name for people, value) of the main metric; None without one."""
    name = main_metric(metrics)
    return (LABELS[name].removeprefix("box "), metrics[name]) if name else None
