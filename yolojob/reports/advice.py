"""Suggests what to change first, by where the time of a run went, with an estimate of the time saved. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from yolojob.api.spec import YoloTrainingJobSpec
from yolojob.api.time_parts import STEP_PARTS, TimePart
from yolojob.format import rough_duration


@dataclass(frozen=True, kw_only=True)
class Advice:
    """One thing to change."""

    what: str
    """What takes the time: "data wait is 61%"."""
    change: str
    """The proposed change."""
    saves: float
    """Estimated saving in seconds."""

    def __str__(self) -> str:
        return f"{self.what}: {self.change} would save about {rough_duration(self.saves)}"


CACHE_SAVING = 0.23
"""Fraction of the data wait that decoded images in memory save; the rest is augmentation. Measured with images of
640 x 480 pixels (docs/benchmarks.md); it is more with larger images."""


def suggest(
    parts: dict[TimePart, float], stragglers: dict[int, float], spec: YoloTrainingJobSpec | None
) -> list[Advice]:
    """Advice, sorted by the time it saves.

    Args:
        parts: seconds of the run by part, as in `status.timing`.
        stragglers: seconds of computing per step, by rank.
        spec: the job's spec, if known.
    """
    total = sum(parts.values()) or 1.0
    share = {part: seconds / total for part, seconds in parts.items()}
    steps = sum(parts.get(p, 0.0) for p in STEP_PARTS if p is not TimePart.OTHER)
    suggestions: list[Advice] = []

    def add(part: TimePart, threshold: float, change: str, saves: float) -> None:
        if share.get(part, 0.0) > threshold:
            suggestions.append(Advice(what=f"{part.label} is {share[part]:.0%}", change=change, saves=saves))

    period = (spec.train.val_period if spec else None) or 1
    wait = parts.get(TimePart.DATA_WAIT, 0.0)
    cached = spec is not None and spec.train.cache in (True, "ram", "gpu")
    change = "more loader processes (train.workers) and CPUs" if cached else "cache: ram"
    add(TimePart.DATA_WAIT, 0.1, change, wait * (0.5 if cached else CACHE_SAVING))
    add(TimePart.ALL_REDUCE, 0.15, "fewer workers, or a larger train.batch,", parts.get(TimePart.ALL_REDUCE, 0.0) * 0.5)
    add(
        TimePart.VALIDATION,
        0.2,
        f"train.val_period: {5 * period}",
        parts.get(TimePart.VALIDATION, 0.0) * 0.8,
    )
    every = spec.checkpoint.every_epochs if spec else 1
    add(TimePart.CHECKPOINT, 0.05, f"checkpoint.everyEpochs: {every * 5}", parts.get(TimePart.CHECKPOINT, 0.0) * 0.8)
    add(
        TimePart.IMAGE_PULL,
        0.1,
        "pre-pulling the image onto the nodes",
        parts.get(TimePart.IMAGE_PULL, 0.0) * 0.9,
    )
    add(
        TimePart.STAGING,
        0.1,
        "trainer.cacheVolume of the chart, so that nodes keep the dataset,",
        parts.get(TimePart.STAGING, 0.0) * 0.9,
    )
    add(TimePart.QUEUED, 0.2, "more quota, or a higher priority class,", parts.get(TimePart.QUEUED, 0.0) * 0.5)
    add(TimePart.SCHEDULING, 0.1, "nodes that are already running", parts.get(TimePart.SCHEDULING, 0.0) * 0.8)
    add(TimePart.LOST, 0.05, "a smaller checkpoint.everySeconds", parts.get(TimePart.LOST, 0.0) * 0.5)
    if (slow_rank := _straggler(stragglers, steps)) is not None:
        suggestions.append(slow_rank)
    return sorted(suggestions, key=lambda advice: -advice.saves)


def _straggler(seconds_per_step: dict[int, float], steps: float) -> Advice | None:
    """Advice about the slowest rank; None if it is not much slower than the others.

    Args:
        seconds_per_step: seconds of computing per step, by rank.
        steps: seconds of all steps.
    """
    if len(seconds_per_step) < 2:
        return None
    slow = max(seconds_per_step, key=lambda rank: seconds_per_step[rank])
    others = sorted(seconds for rank, seconds in seconds_per_step.items() if rank != slow)
    median = others[len(others) // 2]
    if seconds_per_step[slow] <= 1.1 * median:
        return None
    return Advice(
        what=f"rank {slow} takes {seconds_per_step[slow] / median:.2f} times as long as the others to compute a step",
        change="another node",
        saves=steps * (1 - median / seconds_per_step[slow]),
    )
