"""A run in hindsight: where its time and money went, and what to change first."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console

from yolojob.api.job import YoloTrainingJob
from yolojob.api.status import Attempt, Cost
from yolojob.cli import live_view
from yolojob.client.client import Client, ClusterError
from yolojob.estimation.option import clock
from yolojob.reports import advice, plots, run_files
from yolojob.reports.advice import Advice
from yolojob.reports.comparison import time_unit
from yolojob.reports.html import Section, render
from yolojob.reports.html import write as write_page
from yolojob.reports.run_files import Epoch, Line

COMPUTING = ("forward", "loss", "backward")


@dataclass(frozen=True, kw_only=True)
class Story:
    """A run, told."""

    name: str
    parts: dict[str, float]
    """Seconds by part, in the order in which they happen."""
    epochs: list[Epoch] = field(default_factory=list)
    phases: dict[str, list[float]] = field(default_factory=dict)
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


def of_folder(folder: Path) -> Story:
    """A run by its own record.

    Raises:
        NoRun: there is none, or its record is damaged.
    """
    lines, epochs = run_files.traces(folder), run_files.epochs(folder)
    own = [line for line in lines if line.rank == 0]
    parts: dict[str, float] = {}
    for line in own:
        for phase, seconds in line.seconds.items():
            parts[phase] = parts.get(phase, 0.0) + seconds
    gaps = sum(max(after.start - before.end, 0.0) for before, after in pairwise(own))
    if gaps > 0.01 * sum(parts.values()):
        parts["restart"] = gaps
    parts = {part: parts[part] for part in plots.in_order(parts)}
    numbers = sorted({line.epoch for line in own})
    phases = {
        phase: [sum(x.seconds.get(phase, 0.0) for x in own if x.epoch == n) for n in numbers]
        for phase in parts
        if phase not in ("startup", "staging", "rendezvous", "restart")
    }
    stragglers = _stragglers(lines)
    best = max((e for e in epochs if e.map is not None), key=lambda e: e.map or 0.0, default=None)
    return Story(
        name=folder.resolve().name,
        parts=parts,
        epochs=epochs,
        phases=phases,
        rates=[_rate([x for x in own if x.epoch == n and x.images]) for n in numbers],
        stragglers=stragglers,
        advice=advice.of(parts, stragglers, None),
        reached=(best.map50 or 0.0, best.map or 0.0) if best else None,
    )


def _rate(steps: list[Line]) -> float:
    seconds = sum(sum(line.seconds.values()) for line in steps)
    return sum(line.images for line in steps) / seconds if seconds else 0.0


def _stragglers(lines: list[Line]) -> dict[int, float]:
    out = {}
    for rank in sorted({line.rank for line in lines}):
        steps = [line for line in lines if line.rank == rank and line.images]
        computing = sum(line.seconds.get(phase, 0.0) for line in steps for phase in COMPUTING)
        if steps:
            out[rank] = computing / len(steps)
    return out


def of_job(name: str, context: str | None, namespace: str | None) -> Story:
    """A job in the cluster, by its status.

    Raises:
        ClusterError: it is not there, or has not begun.
    """
    job = Client(context, namespace).get(name)
    return told(job)


def told(job: YoloTrainingJob) -> Story:
    """The story of a job's status. Pure.

    Raises:
        ClusterError: it has not begun.
    """
    status = job.status
    if status is None or status.timing is None:
        raise ClusterError(f"{job.metadata.name} has not begun: there is nothing to tell yet")
    parts = live_view.split(status.timing)
    found = status.result
    return Story(
        name=job.metadata.name,
        parts=parts,
        advice=advice.of(parts, {}, job.spec),
        cost=status.cost,
        attempts=status.history,
        reached=(found.map50 or 0.0, found.map or 0.0) if found and found.map50 is not None else None,
    )


def joined(run: Story, job: Story) -> Story:
    """A run's own record, with the waits and the money of the job that made it."""
    return replace(run, name=job.name, parts=job.parts, cost=job.cost, attempts=job.attempts, advice=job.advice)


# --- shown ------------------------------------------------------------------------------------------------------------


def cost_words(cost: Cost | None) -> str:
    """What it has cost; where there is no price, what is missing."""
    if cost is None or cost.so_far is None:
        return (cost.message if cost and cost.message else None) or "no price: a run's folder knows none"
    return f"{cost.so_far:.{6 if cost.so_far < 1 else 2}f} {cost.currency}: {cost.message or ''}".rstrip(": ")


def show(story: Story, console: Console) -> None:
    """On the terminal."""
    console.print(f"{story.name}: {clock(story.total)} from start to model", style="bold")
    console.print(live_view.stacked(story.parts))
    for part, seconds in story.parts.items():
        console.print(f"  {part:12} {live_view.duration(seconds):>9}  {seconds / story.total:6.1%}", highlight=False)
    if story.reached:
        console.print(f"mAP50 {story.reached[0]:.3f}, mAP50-95 {story.reached[1]:.3f}", highlight=False)
    console.print(f"Cost: {cost_words(story.cost)}", highlight=False, soft_wrap=True)
    for each in story.advice:
        console.print(f"→ {each}", style="bold", highlight=False, soft_wrap=True)
    if not story.advice:
        console.print("Nothing stands out that would make it faster by itself.")


def to_json(story: Story) -> dict[str, Any]:
    """For programs."""
    return {
        "name": story.name,
        "seconds": round(story.total, 3),
        "parts": {part: round(seconds, 3) for part, seconds in story.parts.items()},
        "epochs": [asdict(e) for e in story.epochs],
        "stragglers": {str(rank): round(seconds, 6) for rank, seconds in story.stragglers.items()},
        "cost": story.cost.model_dump(mode="json", by_alias=True, exclude_none=True) if story.cost else None,
        "advice": [{"what": a.what, "change": a.change, "savesSeconds": round(a.saves, 1)} for a in story.advice],
    }


def write(story: Story, page: Path) -> None:
    """The page."""
    lead = [str(each) for each in story.advice[:3]] or ["Nothing stands out that would make it faster by itself."]
    title = f"{story.name}: where {clock(story.total)} went"
    write_page(page, render(title, lead, _sections(story), "Made by yolojob report."))


def _sections(story: Story) -> list[Section]:
    unit, scale = time_unit(story.total)
    rows = [
        [part, live_view.duration(seconds), f"{seconds / story.total:.1%}"] for part, seconds in story.parts.items()
    ]
    sections = [
        Section(
            title="From start to model",
            figure=plots.stacked({story.name: story.parts}, unit, scale),
            columns=["part", "time", "share"],
            rows=rows,
        )
    ]
    if story.phases:
        numbers = [float(n) for n in range(1, len(story.rates) + 1)]
        sections += [
            Section(title="Epoch by epoch", figure=plots.columns(numbers, story.phases, "epoch", "s")),
            Section(
                title="Throughput", figure=plots.lines({"img/s": (numbers, story.rates)}, "epoch", "images per second")
            ),
        ]
    validated = [e for e in story.epochs if e.map is not None]
    if validated:
        times = [e.seconds * scale for e in validated]
        curves = {
            "mAP50-95": (times, [e.map or 0.0 for e in validated]),
            "mAP50": (times, [e.map50 or 0.0 for e in validated]),
        }
        sections.append(Section(title="Accuracy over time", figure=plots.lines(curves, unit, "mAP")))
        if story.cost and story.cost.so_far is not None:
            # What ran before the first epoch costs, too: the last epoch's money is all of it.
            spent = [story.cost.so_far * e.seconds / validated[-1].seconds for e in validated]
            over = {name: (spent, values) for name, (_, values) in curves.items()}
            words = ["The whole cost, spread over the epochs as their time is."]
            figure = plots.lines(over, story.cost.currency or "", "mAP")
            sections.append(Section(title="Accuracy over money", words=words, figure=figure))
    if len(story.stragglers) > 1:
        rows = [[f"rank {rank}", f"{seconds * 1000:.1f} ms"] for rank, seconds in story.stragglers.items()]
        sections.append(Section(title="Stragglers", columns=["", "computing, in a step"], rows=rows))
    sections.append(_money(story))
    rows = [[a.what, a.change, clock(a.saves)] for a in story.advice]
    words = [] if rows else ["Nothing stands out that would make it faster by itself."]
    sections.append(
        Section(title="What to change first", words=words, columns=["what", "change", "saves about"], rows=rows)
    )
    return sections


def _money(story: Story) -> Section:
    cost = story.cost
    words = [cost_words(cost)]
    rows = [
        [
            str(a.attempt),
            str(a.workers),
            live_view.duration(a.pod_seconds),
            f"{a.per_worker_hour:.4f}" if a.per_worker_hour is not None else "no price",
            f"{a.cost:.6f} {a.currency}" if a.cost is not None else "no price",
            a.reason or "",
        ]
        for a in story.attempts
    ]
    if cost and cost.so_far and story.reached and story.reached[1]:
        words.append(f"{cost.so_far / story.reached[1] / 100:.4g} {cost.currency} for each hundredth of mAP50-95.")
    columns = ["attempt", "workers", "pods ran", "per worker and hour", "cost", "ended"]
    return Section(title="Money", words=words, columns=columns, rows=rows)
