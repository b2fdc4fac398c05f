"""How a run looks in a terminal."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from rich.bar import Bar
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from yolojob.api.job import YoloTrainingJob
from yolojob.api.status import (
    Attempt,
    Condition,
    Cost,
    Phase,
    Progress,
    Report,
    State,
    Timing,
    TuningReport,
    YoloTrainingJobStatus,
)

PIPE_WIDTH = 1000
"""Columns where there is no terminal: programs read lines, whole."""
COLOURS = {
    "queued": "bright_black",
    "image pull": "grey50",
    "data_wait": "yellow",
    "h2d": "bright_yellow",
    "forward": "green",
    "loss": "bright_green",
    "backward": "cyan",
    "all_reduce": "magenta",
    "optimizer": "blue",
    "ema": "bright_blue",
    "validation": "white",
    "checkpoint": "red",
    "staging": "bright_black",
    "startup": "bright_black",
    "unaccounted": "bright_red",
}


def duration(seconds: float) -> str:
    """1:02:03, 4:05 or 6.7 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def split(timing: Timing) -> dict[str, float]:
    """Seconds of the run by part, in the order in which they happen, without those that took none."""
    return {name: seconds for name, seconds in timing.parts.items() if seconds > 0}


def _figures(report: Report) -> dict[str, str]:
    p = report.progress
    figures = {
        "epoch": f"{p.epoch}/{p.epochs}" if p.epochs else "",
        "step": f"{p.step}/{p.steps}" if p.step else "",
        "img/s": f"{p.images_per_second:.1f}" if p.images_per_second else "",
        "loss": f"{p.loss:.4f}" if p.loss is not None else "",
        "mAP50": f"{p.map50:.3f}" if p.map50 is not None else "",
        "mAP50-95": f"{p.map:.3f}" if p.map is not None else "",
        "ETA": duration(max((p.eta - datetime.now(UTC)).total_seconds(), 0)) if p.eta else "",
    }
    return {name: value for name, value in figures.items() if value}


def size(count: float) -> str:
    """Bytes for people, in binary units as Kubernetes has them: 1.5 GiB."""
    unit = "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if count < 1024:
            break
        count, unit = count / 1024, larger
    return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"


def _staged(progress: Progress) -> str:
    """How much of the data set is there."""
    there = size(progress.staged_bytes or 0)
    return f"{there} of {size(progress.dataset_bytes)}" if progress.dataset_bytes else there


def _done(progress: Progress) -> float:
    """Epochs done, with the running one's part."""
    part = progress.step / progress.steps if progress.steps else 0.0
    return min(progress.epoch + part, progress.epochs)


def stacked(parts: dict[str, float], width: int = 60) -> RenderableType:
    """One bar with a stretch for each part, and a legend."""
    total = sum(parts.values()) or 1.0
    bar, legend = Text(), Text()
    used, exact = 0, 0.0
    for name, seconds in parts.items():
        exact += seconds / total * width
        cells = round(exact) - used
        used += cells
        bar.append("█" * cells, style=COLOURS.get(name, "white"))
        if seconds / total >= 0.005:
            legend.append("■ ", style=COLOURS.get(name, "white"))
            legend.append(f"{name} {seconds / total:.0%}  ", style="none")
    return Group(bar, legend)


def panel(name: str, report: Report | None) -> RenderableType:
    """The live view."""
    if report is None:
        return Text(f"{name}: starting", style="bold")
    title = Text.assemble((name, "bold"), f"  {report.state.value.lower()}")
    if report.device:
        processes = f"{report.world_size} × " if report.world_size > 1 else ""
        title.append(f"  {processes}{report.device}, {report.precision}", style="dim")
    lines: list[RenderableType] = [title]
    if report.state == State.STAGING and report.progress.staged_bytes is not None:
        grid = Table.grid(padding=(0, 2))
        total = report.progress.dataset_bytes
        grid.add_row(ProgressBar(total=total, completed=report.progress.staged_bytes, width=60, pulse=not total))
        grid.add_row(Text(_staged(report.progress)))
        lines.append(grid)
    if report.progress.epochs:
        bar = Table.grid()  # a bar alone does not end its line
        bar.add_row(ProgressBar(total=report.progress.epochs, completed=_done(report.progress), width=60))
        lines.append(bar)
        grid = Table.grid(padding=(0, 2))
        figures = _figures(report)
        grid.add_row(*(Text(key, style="dim") for key in figures))
        grid.add_row(*figures.values())
        lines.append(grid)
        lines.append(stacked(split(report.timing)))
    lines.extend(Text(f"! {warning}", style="yellow") for warning in report.warnings)
    return Group(*lines)


class View:
    """Shows reports: as a live panel on a terminal, as a line per epoch elsewhere."""

    def __init__(self, name: str, console: Console) -> None:
        self._name = name
        self._console = console
        self._live = Live(panel(name, None), console=console, refresh_per_second=4) if console.is_terminal else None
        self._shown: tuple[State, int, int] | None = None

    def __enter__(self) -> View:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def update(self, report: Report) -> None:
        if self._live:
            self._live.update(panel(self._name, report))
            return
        p = report.progress
        tenths = 10 * (p.staged_bytes or 0) // p.dataset_bytes if p.dataset_bytes else 0
        key = (State.TRAINING if p.epochs else report.state, p.epoch, tenths)
        if key != self._shown:
            self._shown = key
            figures = _figures(report)
            staged = f" {_staged(p)}" if p.staged_bytes is not None else ""
            words = "  ".join(f"{k} {v}" for k, v in figures.items() if k != "step")
            words = words or f"{report.state.value.lower()}{staged}"
            self._console.print(f"{self._name}: {words}", highlight=False, soft_wrap=True)


def console() -> Console:
    """For what others have written: brackets in it are no markup, and a pipe cuts nothing off."""
    made = Console(markup=False, emoji=False)
    return made if made.is_terminal else Console(markup=False, emoji=False, width=PIPE_WIDTH)


def jobs(found: list[YoloTrainingJob], console: Console) -> None:
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
    figures = "  ".join(f"{k} {v}" for k, v in _figures(report).items() if k not in ("step", "ETA"))
    latest = _latest(status)
    why = (
        f"  {latest.reason}: {latest.message}"
        if latest and status.phase not in (Phase.RUNNING, Phase.SUCCEEDED)
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
    if (latest := _latest(status)) and status.phase is not Phase.RUNNING:
        lines.append(Text(f"{latest.reason}: {latest.message}", style="dim"))
    if status.progress and status.progress.epochs:
        bar = Table.grid()
        bar.add_row(ProgressBar(total=status.progress.epochs, completed=_done(status.progress), width=60))
        grid = Table.grid(padding=(0, 2))
        figures = _figures(Report(progress=status.progress))
        grid.add_row(*(Text(key, style="dim") for key in figures))
        grid.add_row(*figures.values())
        lines += [bar, grid]
    if status.timing:
        lines.append(stacked(split(status.timing)))
    return Group(*lines)


def story(job: YoloTrainingJob, events: list[dict[str, Any]], console: Console) -> None:
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
        console.print(_attempts(status.history))
    if status.cost:
        console.print(f"Cost: {_cost(status.cost)}", highlight=False, soft_wrap=True)
    if status.restarts or status.disruptions:
        console.print(
            f"Restarts: {status.restarts} (limit {job.spec.run_policy.backoff_limit}), disruptions: {status.disruptions}"
        )
    if status.result:
        found = status.result
        accuracy = f", mAP50 {found.map50:.3f}, mAP50-95 {found.map:.3f}" if found.map50 is not None else ""
        console.print(f"Result: {found.weights}{accuracy}", highlight=False, soft_wrap=True)


def _attempts(history: list[Attempt]) -> Table:
    table = Table(title="Attempts", title_justify="left", box=None, pad_edge=False)
    for column in ("attempt", "workers", "device", "ran", "cost", "ended", "message"):
        table.add_column(column, overflow="fold")
    for a in history:
        ran = duration(a.pod_seconds / a.workers) if a.workers else ""
        cost = f"{a.cost:.4f} {a.currency}" if a.cost is not None else ""
        table.add_row(str(a.attempt), str(a.workers), a.device, ran, cost, a.reason or "", a.message or "")
    return table


def _cost(cost: Cost) -> str:
    """In one line; where there is no price, what is missing."""
    if cost.so_far is None:
        return cost.message or "no price"
    words = f"{cost.so_far:.4f} {cost.currency} so far, {cost.per_hour or 0:.4f} per hour"
    if cost.estimated_total is not None:
        words += f", {cost.estimated_total:.4f} in all"
    if cost.budget is not None:
        words += f", budget {cost.budget:.4f}"
    if cost.lost:
        words += f", of it lost {cost.lost:.4f}"
    return f"{words} ({cost.message})" if cost.message else words


def _latest(status: YoloTrainingJobStatus) -> Condition | None:
    """The condition that changed last."""
    return max(status.conditions, key=lambda c: c.last_transition_time, default=None)


def tuning(report: TuningReport, console: Console) -> None:
    """The trials, and what was chosen."""
    table = Table(title="Trials", title_justify="left", box=None)
    table.add_column("setting")
    table.add_column("img/s", justify="right")
    table.add_column("")
    table.add_column("verdict")
    most = max((trial.images_per_second or 0.0 for trial in report.trials), default=0.0)
    for trial in report.trials:
        rate = trial.images_per_second
        bar = Bar(most, 0, rate, width=30, color="green" if trial.verdict == "kept" else "bright_black") if rate else ""
        table.add_row(trial.settings, f"{rate:.1f}" if rate else "", bar, trial.verdict)
    console.print(table)
    words = ", ".join(f"{name}={value}" for name, value in report.chosen.items())
    console.print(f"Chosen: {words}", highlight=False, soft_wrap=True)


def summary(name: str, report: Report, console: Console) -> None:
    """What is left to say when the run has ended well."""
    parts = split(report.timing)
    total = sum(parts.values())
    table = Table(title=f"{name}: where {duration(total)} went", title_justify="left", box=None)
    table.add_column("part")
    table.add_column("time", justify="right")
    table.add_column("share", justify="right")
    table.add_column("")
    for part, seconds in parts.items():
        bar = Bar(total, 0, seconds, width=30, color=COLOURS.get(part, "white"))
        table.add_row(part, duration(seconds), f"{seconds / total:.1%}", bar)
    console.print(table)
    if report.tuning:
        tuning(report.tuning, console)
    for warning in report.warnings:
        console.print(f"! {warning}", style="yellow", highlight=False)
    if result := report.result:
        accuracy = (
            f"mAP50 {result.map50:.3f}, mAP50-95 {result.map:.3f}" if result.map50 is not None else "not validated"
        )
        console.print(f"\nBest model: {accuracy}", style="bold", highlight=False)
        console.print(result.weights, soft_wrap=True, highlight=False)
        console.print(f"Try it: yolo predict model={result.weights} source=IMAGE", style="dim", soft_wrap=True)
