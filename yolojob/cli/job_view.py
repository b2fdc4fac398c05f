"""Shows jobs of a cluster in a terminal: as a list, as one line, as a live panel, and in full."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from yolojob.api.job import YoloTrainingJob
from yolojob.api.status import Attempt, Condition, Cost, JobPhase, Progress, YoloTrainingJobStatus
from yolojob.api.trainer_report import Report
from yolojob.cli.live_view import PIPE_WIDTH, epochs_done, progress_figures, stacked_bar
from yolojob.format import duration


def show_jobs(found: list[YoloTrainingJob], console: Console) -> None:
    """One line for each job, with the columns of `kubectl get ytj`."""
    table = Table(box=None, pad_edge=False, header_style="")
    for column in ("NAME", "PHASE", "WORKERS", "EPOCH", "MAP50", "IMG/S", "ETA", "COST", "AGE"):
        table.add_column(column, no_wrap=True)
    now = datetime.now(UTC)
    for job in found:
        status = job.status or YoloTrainingJobStatus()
        p = status.progress or Progress()
        created = job.metadata.creation_timestamp
        table.add_row(
            job.metadata.name,
            status.phase.value,
            f"{status.workers.ready}/{status.workers.desired}",
            f"{p.epoch}/{p.epochs}" if p.epochs else "",
            f"{p.map50:.3f}" if p.map50 is not None else "",
            f"{p.images_per_second:.1f}" if p.images_per_second else "",
            duration(max((p.eta - now).total_seconds(), 0)) if p.eta else "",
            f"{status.cost.so_far:.2f} {status.cost.currency}"
            if status.cost and status.cost.so_far is not None
            else "",
            duration((now - created).total_seconds()) if created else "",
        )
    console.print(table, width=PIPE_WIDTH, crop=False)  # a narrow terminal breaks lines; nothing is cut off


def job_line(job: YoloTrainingJob) -> str:
    """Where a job in a cluster stands, in one line."""
    status = job.status or YoloTrainingJobStatus()
    report = Report(progress=status.progress or Progress())
    figures = "  ".join(f"{k} {v}" for k, v in progress_figures(report).items() if k not in ("step", "ETA"))
    latest = _latest_condition(status)
    why = (
        f"  {latest.reason}: {latest.message}"
        if latest and status.phase not in (JobPhase.RUNNING, JobPhase.SUCCEEDED)
        else ""
    )
    return f"{job.metadata.name}: {status.phase.value.lower()}  {figures}{why}".rstrip()


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
    """What has become of a job: conditions, events, time, result."""
    status = job.status or YoloTrainingJobStatus()
    console.print(job_panel(job))
    table = Table(title="Conditions", title_justify="left", box=None, pad_edge=False)
    for column in ("type", "status", "reason", "since", "message"):
        table.add_column(column, overflow="fold")
    now = datetime.now(UTC)
    for c in status.conditions:
        table.add_row(
            c.type.value, c.status, c.reason, duration((now - c.last_transition_time).total_seconds()), c.message
        )
    console.print(table)
    if events:
        table = Table(title="Events", title_justify="left", box=None, pad_edge=False)
        for column in ("time", "type", "reason", "message"):
            table.add_column(column, overflow="fold")
        for e in events:
            when = str(e.get("lastTimestamp") or e.get("eventTime") or "")[:19]
            table.add_row(when, e.get("type", ""), e.get("reason", ""), e.get("message", ""))
        console.print(table)
    if len(status.history) > 1:
        console.print(_attempts_table(status.history))
    if status.cost:
        console.print(f"Cost: {_cost_line(status.cost)}", highlight=False, soft_wrap=True)
    if status.restarts or status.disruptions:
        console.print(
            f"Restarts: {status.restarts} (limit {job.spec.run_policy.backoff_limit}), disruptions: {status.disruptions}"
        )
    if status.result:
        found = status.result
        accuracy = f", mAP50 {found.map50:.3f}, mAP50-95 {found.map:.3f}" if found.map50 is not None else ""
        console.print(f"Result: {found.weights}{accuracy}", highlight=False, soft_wrap=True)


def _attempts_table(history: list[Attempt]) -> Table:
    table = Table(title="Attempts", title_justify="left", box=None, pad_edge=False)
    for column in ("attempt", "workers", "device", "ran", "cost", "ended", "message"):
        table.add_column(column, overflow="fold")
    for a in history:
        ran = duration(a.pod_seconds / a.workers) if a.workers else ""
        cost = f"{a.cost:.4f} {a.currency}" if a.cost is not None else ""
        table.add_row(str(a.attempt), str(a.workers), a.device, ran, cost, a.reason or "", a.message or "")
    return table


def _cost_line(cost: Cost) -> str:
    """In one line; where there is no price, what is missing."""
    if cost.so_far is None:
        return cost.price_source or "no price"
    words = f"{cost.so_far:.4f} {cost.currency} so far, {cost.per_hour or 0:.4f} per hour"
    if cost.estimated_total is not None:
        words += f", {cost.estimated_total:.4f} in all"
    if cost.budget is not None:
        words += f", budget {cost.budget:.4f}"
    if cost.lost:
        words += f", of it lost {cost.lost:.4f}"
    return f"{words} ({cost.price_source})" if cost.price_source else words


def _latest_condition(status: YoloTrainingJobStatus) -> Condition | None:
    """The condition that changed last."""
    return max(status.conditions, key=lambda c: c.last_transition_time, default=None)
