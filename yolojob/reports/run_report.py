"""Builds the report on a run: where its time and money went, and what to change first."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from yolojob.api.errors import ClusterError
from yolojob.api.job import YoloTrainingJob
from yolojob.api.status import Attempt, Cost
from yolojob.api.task import labelled, named_score
from yolojob.api.time_parts import NETWORK_PARTS, TRAINER_PARTS, TimePart, in_order
from yolojob.client.client import Client
from yolojob.reports import advice, run_files
from yolojob.reports.advice import Advice
from yolojob.reports.run_files import Epoch, TraceLine

NO_ADVICE = "No single change promises a notable speed-up."


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """Where a run's time and money went."""

    name: str
    parts: dict[TimePart, float]
    """Seconds by part, in the order in which they happen."""
    epochs: list[Epoch] = field(default_factory=list)
    phases: dict[TimePart, list[float]] = field(default_factory=dict)
    """Seconds of rank 0 in each epoch, by phase."""
    rates: list[float] = field(default_factory=list)
    """Images per second in each epoch, during training steps."""
    stragglers: dict[int, float] = field(default_factory=dict)
    """Seconds of computing per step, by rank."""
    advice: list[Advice] = field(default_factory=list)
    cost: Cost | None = None
    """Cost of a job in a cluster; None for a run's folder alone."""
    attempts: list[Attempt] = field(default_factory=list)
    reached: dict[str, float] = field(default_factory=dict)
    """Metrics of the best model by their names for people, such as mAP50-95; empty without a validation."""
    score: tuple[str, float] | None = None
    """(name for people, value) of the main metric of the best model."""

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def from_folder(folder: Path) -> RunReport:
    """The report on a run's folder.

    Raises:
        NoRun: the folder is not a run, or its files are damaged.
    """
    lines, epochs = run_files.traces(folder), run_files.epochs(folder)
    rank0_lines = [line for line in lines if line.rank == 0]
    parts: dict[TimePart, float] = {}
    for line in rank0_lines:
        for phase, seconds in line.seconds.items():
            parts[phase] = parts.get(phase, 0.0) + seconds
    gaps = sum(max(after.start - before.end, 0.0) for before, after in pairwise(rank0_lines))
    if gaps > 0.01 * sum(parts.values()):
        parts[TimePart.RESTART] = gaps
    parts = {part: parts[part] for part in in_order(parts)}
    epoch_numbers = sorted({line.epoch for line in rank0_lines})
    phases = {
        phase: [sum(x.seconds.get(phase, 0.0) for x in rank0_lines if x.epoch == n) for n in epoch_numbers]
        for phase in parts
        if phase in TRAINER_PARTS
    }
    stragglers = _stragglers(lines)
    best = max((e for e in epochs if e.score is not None), key=lambda e: e.score or 0.0, default=None)
    return RunReport(
        name=folder.resolve().name,
        parts=parts,
        epochs=epochs,
        phases=phases,
        rates=[_rate([x for x in rank0_lines if x.epoch == n and x.images]) for n in epoch_numbers],
        stragglers=stragglers,
        advice=advice.suggest(parts, stragglers, None),
        reached=labelled(best.metrics) if best else {},
        score=named_score(best.metrics) if best else None,
    )


def _rate(steps: list[TraceLine]) -> float:
    seconds = sum(sum(line.seconds.values()) for line in steps)
    return sum(line.images for line in steps) / seconds if seconds else 0.0


def _stragglers(lines: list[TraceLine]) -> dict[int, float]:
    seconds_per_step = {}
    for rank in sorted({line.rank for line in lines}):
        steps = [line for line in lines if line.rank == rank and line.images]
        computing = sum(line.seconds.get(phase, 0.0) for line in steps for phase in NETWORK_PARTS)
        if steps:
            seconds_per_step[rank] = computing / len(steps)
    return seconds_per_step


def from_cluster(name: str, context: str | None, namespace: str | None) -> RunReport:
    """The report on a job in the cluster, from its status.

    Raises:
        ClusterError: the job does not exist, or has not started.
    """
    job = Client(context, namespace).get(name)
    return from_status(job)


def from_status(job: YoloTrainingJob) -> RunReport:
    """The report on a job's status. Pure.

    Raises:
        ClusterError: the job has not started.
    """
    status = job.status
    if status is None or status.timing is None:
        raise ClusterError(f"{job.metadata.name} has not started yet: its status has no timing")
    parts = status.timing.spent
    result = status.result
    return RunReport(
        name=job.metadata.name,
        parts=parts,
        advice=advice.suggest(parts, {}, job.spec),
        cost=status.cost,
        attempts=status.history,
        reached=result.labelled if result else {},
        score=named_score(result.all_metrics) if result else None,
    )


def merge(run: RunReport, job: RunReport) -> RunReport:
    """The report on a run's folder, with the waiting times and the cost of the job that wrote it."""
    return replace(run, name=job.name, parts=job.parts, cost=job.cost, attempts=job.attempts, advice=job.advice)


def cost_description(cost: Cost | None) -> str:
    """The cost and the source of the price; without a price, what is missing."""
    if cost is None or cost.so_far is None:
        return (cost.price_source if cost and cost.price_source else None) or "no price: a run's folder contains none"
    return f"{cost.so_far:.{6 if cost.so_far < 1 else 2}f} {cost.currency}: {cost.price_source or ''}".rstrip(": ")


def to_json(report: RunReport) -> dict[str, Any]:
    """The report as plain data, for programs."""
    return {
        "name": report.name,
        "seconds": round(report.total, 3),
        "parts": {part.value: round(seconds, 3) for part, seconds in report.parts.items()},
        "epochs": [{**asdict(e), "score": e.score} for e in report.epochs],
        "stragglers": {str(rank): round(seconds, 6) for rank, seconds in report.stragglers.items()},
        "cost": report.cost.model_dump(mode="json", by_alias=True, exclude_none=True) if report.cost else None,
        "advice": [{"what": a.what, "change": a.change, "savesSeconds": round(a.saves, 1)} for a in report.advice],
    }
