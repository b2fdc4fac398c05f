"""A run in hindsight: where its time and money went, and what to change first."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from yolojob.api.errors import ClusterError
from yolojob.api.job import YoloTrainingJob
from yolojob.api.status import Attempt, Cost
from yolojob.api.time_parts import NETWORK_PARTS, TRAINER_PARTS, TimePart, in_order
from yolojob.client.client import Client
from yolojob.reports import advice, run_files
from yolojob.reports.advice import Advice
from yolojob.reports.run_files import Epoch, TraceLine


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """A run, told."""

    name: str
    parts: dict[TimePart, float]
    """Seconds by part, in the order in which they happen."""
    epochs: list[Epoch] = field(default_factory=list)
    phases: dict[TimePart, list[float]] = field(default_factory=dict)
    """Seconds of rank 0 by phase, of each epoch."""
    rates: list[float] = field(default_factory=list)
    """Images per second of each epoch, while it trains steps."""
    stragglers: dict[int, float] = field(default_factory=dict)
    """Seconds of computing in a step, by rank."""
    advice: list[Advice] = field(default_factory=list)
    cost: Cost | None = None
    """Of a job in a cluster."""
    attempts: list[Attempt] = field(default_factory=list)
    reached: tuple[float, float] | None = None
    """(mAP50, mAP50-95) of the best model."""

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def from_folder(folder: Path) -> RunReport:
    """A run by its own record.

    Raises:
        NoRun: there is none, or its record is damaged.
    """
    lines, epochs = run_files.traces(folder), run_files.epochs(folder)
    own = [line for line in lines if line.rank == 0]
    parts: dict[TimePart, float] = {}
    for line in own:
        for phase, seconds in line.seconds.items():
            parts[phase] = parts.get(phase, 0.0) + seconds
    gaps = sum(max(after.start - before.end, 0.0) for before, after in pairwise(own))
    if gaps > 0.01 * sum(parts.values()):
        parts[TimePart.RESTART] = gaps
    parts = {part: parts[part] for part in in_order(parts)}
    numbers = sorted({line.epoch for line in own})
    phases = {
        phase: [sum(x.seconds.get(phase, 0.0) for x in own if x.epoch == n) for n in numbers]
        for phase in parts
        if phase in TRAINER_PARTS
    }
    stragglers = _stragglers(lines)
    best = max((e for e in epochs if e.map is not None), key=lambda e: e.map or 0.0, default=None)
    return RunReport(
        name=folder.resolve().name,
        parts=parts,
        epochs=epochs,
        phases=phases,
        rates=[_rate([x for x in own if x.epoch == n and x.images]) for n in numbers],
        stragglers=stragglers,
        advice=advice.suggest(parts, stragglers, None),
        reached=(best.map50 or 0.0, best.map or 0.0) if best else None,
    )


def _rate(steps: list[TraceLine]) -> float:
    seconds = sum(sum(line.seconds.values()) for line in steps)
    return sum(line.images for line in steps) / seconds if seconds else 0.0


def _stragglers(lines: list[TraceLine]) -> dict[int, float]:
    out = {}
    for rank in sorted({line.rank for line in lines}):
        steps = [line for line in lines if line.rank == rank and line.images]
        computing = sum(line.seconds.get(phase, 0.0) for line in steps for phase in NETWORK_PARTS)
        if steps:
            out[rank] = computing / len(steps)
    return out


def from_cluster(name: str, context: str | None, namespace: str | None) -> RunReport:
    """A job in the cluster, by its status.

    Raises:
        ClusterError: it is not there, or has not begun.
    """
    job = Client(context, namespace).get(name)
    return from_status(job)


def from_status(job: YoloTrainingJob) -> RunReport:
    """The story of a job's status. Pure.

    Raises:
        ClusterError: it has not begun.
    """
    status = job.status
    if status is None or status.timing is None:
        raise ClusterError(f"{job.metadata.name} has not begun: there is nothing to tell yet")
    parts = status.timing.spent
    found = status.result
    return RunReport(
        name=job.metadata.name,
        parts=parts,
        advice=advice.suggest(parts, {}, job.spec),
        cost=status.cost,
        attempts=status.history,
        reached=(found.map50 or 0.0, found.map or 0.0) if found and found.map50 is not None else None,
    )


def merge(run: RunReport, job: RunReport) -> RunReport:
    """A run's own record, with the waits and the money of the job that made it."""
    return replace(run, name=job.name, parts=job.parts, cost=job.cost, attempts=job.attempts, advice=job.advice)


# --- shown ------------------------------------------------------------------------------------------------------------


def cost_words(cost: Cost | None) -> str:
    """What it has cost; where there is no price, what is missing."""
    if cost is None or cost.so_far is None:
        return (cost.price_source if cost and cost.price_source else None) or "no price: a run's folder knows none"
    return f"{cost.so_far:.{6 if cost.so_far < 1 else 2}f} {cost.currency}: {cost.price_source or ''}".rstrip(": ")


def to_json(story: RunReport) -> dict[str, Any]:
    """For programs."""
    return {
        "name": story.name,
        "seconds": round(story.total, 3),
        "parts": {part.value: round(seconds, 3) for part, seconds in story.parts.items()},
        "epochs": [asdict(e) for e in story.epochs],
        "stragglers": {str(rank): round(seconds, 6) for rank, seconds in story.stragglers.items()},
        "cost": story.cost.model_dump(mode="json", by_alias=True, exclude_none=True) if story.cost else None,
        "advice": [{"what": a.what, "change": a.change, "savesSeconds": round(a.saves, 1)} for a in story.advice],
    }
