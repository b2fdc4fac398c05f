"""Shows jobs of a cluster in a terminal: as a list, as one line, as a live panel, and in full."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from yolojob.api.crd import COLUMNS
from yolojob.api.job import YoloTrainingJob
from yolojob.api.status import Attempt, Condition, Cost, JobPhase, Progress, YoloTrainingJobStatus
from yolojob.api.task import named_score
from yolojob.api.trainer_report import Report
from yolojob.cli.console import PIPE_WIDTH, print_line
from yolojob.cli.live_view import epochs_done, progress_figures, stacked_bar
from yolojob.format import coarse_age, duration, metrics_line

MIN_TABLE_WIDTH = 80
"""Columns of the list of jobs on a narrower terminal, which breaks the lines."""


def show_jobs(jobs: list[YoloTrainingJob], console: Console) -> None:
    """Print a line for each job, with the columns of `kubectl get ytj`.

    On a terminal, a long name is folded, so that the columns fit into 80 characters.
    """
    table = Table(box=None, pad_edge=False, header_style="", padding=(0, 1, 0, 0))
    table.add_column("NAME", overflow="fold")
    columns = [name for name, *_ in COLUMNS]
    for name in columns:
        table.add_column(name.upper(), no_wrap=True)
    for job in jobs:
        cells = _job_cells(job)
        table.add_row(job.metadata.name, *(cells[name] for name in columns))
    width = max(console.width, MIN_TABLE_WIDTH) if console.is_terminal else PIPE_WIDTH
    console.print(table, width=width, crop=False)


def _job_cells(job: YoloTrainingJob) -> dict[str, str]:
    """Text by the names of the CRD's columns."""
    status = job.status or YoloTrainingJobStatus()
    progress, cost = status.progress or Progress(), status.cost
    created, now = job.metadata.creation_timestamp, datetime.now(UTC)
    return {
        "Phase": status.phase.value,
        "Workers": f"{status.workers.ready}/{status.workers.desired}",
        "Restarts": str(status.restarts),
        "Epoch": f"{progress.epoch}/{progress.epochs}" if progress.epochs else "",
        "Score": f"{score[1]:.3f}" if (score := named_score(progress.all_metrics)) else "",
        "Img/s": f"{progress.images_per_second:.1f}" if progress.images_per_second else "",
        "ETA": coarse_age(max((progress.eta - now).total_seconds(), 0)) if progress.eta else "",
        "Cost": f"{cost.so_far:.2f} {cost.currency}" if cost and cost.so_far is not None else "",
        "Age": coarse_age((now - created).total_seconds()) if created else "",
    }


def job_line(job: YoloTrainingJob) -> str:
    """The state of a job in a cluster, in one line."""
    status = job.status or YoloTrainingJobStatus()
    report = Report(progress=status.progress or Progress())
    figures = "  ".join(f"{k} {v}" for k, v in progress_figures(report).items() if k not in ("step", "ETA"))
    latest = _latest_condition(status)
    reason = ""
    if latest and status.phase not in (JobPhase.RUNNING, JobPhase.SUCCEEDED):
        reason = f"  {latest.reason}: {latest.message}"
    return f"{job.metadata.name}: {status.phase.value.lower()}  {figures}{reason}".rstrip()


def job_panel(job: YoloTrainingJob) -> RenderableType:
    """The live view of a job in a cluster."""
    status = job.status or YoloTrainingJobStatus()
    lines: list[RenderableType] = [
        Text.assemble(
            (job.metadata.name, "bold"),
            f"  {status.phase.value.lower()}",
            (f"  {status.workers.ready} of {status.workers.desired} workers, attempt {status.attempt}", "dim"),
        )
    ]
    if (latest := _latest_condition(status)) and status.phase is not JobPhase.RUNNING:
        lines.append(Text(f"{latest.reason}: {latest.message}", style="dim"))
    if status.progress and status.progress.epochs:
        bar = Table.grid()
        bar.add_row(ProgressBar(total=status.progress.epochs, completed=epochs_done(status.progress), width=60))
        grid = Table.grid(padding=(0, 2))
        figures = progress_figures(Report(progress=status.progress))
        grid.add_row(*(Text(key, style="dim") for key in figures))
        grid.add_row(*figures.values())
        lines += [bar, grid]
    if status.timing:
        lines.append(stacked_bar(status.timing.spent))
    return Group(*lines)


def describe_job(job: YoloTrainingJob, events: list[dict[str, Any]], console: Console) -> None:
    """Print a job in full: progress, conditions, events, attempts, cost, result."""
    status = job.status or YoloTrainingJobStatus()
    console.print(job_panel(job))
    table = _table("Conditions", "type", "status", "reason", "since", "message")
    now = datetime.now(UTC)
    for c in status.conditions:
        table.add_row(
            c.type.value, c.status, c.reason, duration((now - c.last_transition_time).total_seconds()), c.message
        )
    console.print(table)
    if events:
        table = _table("Events", "time", "type", "reason", "message")
        for e in events:
            when = str(e.get("lastTimestamp") or e.get("eventTime") or "")[:19]
            table.add_row(when, e.get("type", ""), e.get("reason", ""), e.get("message", ""))
        console.print(table)
    if len(status.history) > 1:
        console.print(_attempts_table(status.history))
    if status.cost:
        print_line(console, f"Cost: {_cost_line(status.cost)}")
    if status.restarts or status.disruptions:
        limit = job.spec.run_policy.backoff_limit
        console.print(f"Restarts: {status.restarts} (limit {limit}), disruptions: {status.disruptions}")
    if result := status.result:
        print_line(console, ", ".join(filter(None, [f"Result: {result.weights}", metrics_line(result.labelled)])))


def _table(title: str, *columns: str) -> Table:
    """A table in which only messages take several lines."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column != "message")
    return table


def _attempts_table(history: list[Attempt]) -> Table:
    table = _table("Attempts", "attempt", "workers", "device", "ran", "cost", "ended", "message")
    for a in history:
        ran = duration(a.pod_seconds / a.workers) if a.workers else ""
        cost = f"{a.cost:.4f} {a.currency}" if a.cost is not None else ""
        table.add_row(str(a.attempt), str(a.workers), a.device, ran, cost, a.reason or "", a.message or "")
    return table


def _cost_line(cost: Cost) -> str:
    """The cost in one line; without a price, what is missing."""
    if cost.so_far is None:
        return cost.price_source or "no price"
    text = f"{cost.so_far:.4f} {cost.currency} so far, {cost.per_hour or 0:.4f} per hour"
    if cost.estimated_total is not None:
        text += f", {cost.estimated_total:.4f} in total"
    if cost.budget is not None:
        text += f", budget {cost.budget:.4f}"
    if cost.lost:
        text += f", {cost.lost:.4f} of it lost"
    return f"{text} ({cost.price_source})" if cost.price_source else text


def _latest_condition(status: YoloTrainingJobStatus) -> Condition | None:
    """The condition that changed last."""
    return max(status.conditions, key=lambda c: c.last_transition_time, default=None)
