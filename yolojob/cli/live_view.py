"""Shows a run in a terminal: a live panel or lines, trials, and a summary at the end."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from rich.bar import Bar
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from yolojob.api.constants import PREDICTIONS
from yolojob.api.status import Progress
from yolojob.api.time_parts import TimePart
from yolojob.api.trainer_report import Report, TrainerState, TuningReport
from yolojob.cli.console import print_line, print_table
from yolojob.format import byte_size, duration, metrics_line

READING = (TrainerState.STAGING, TrainerState.CHECKING)
"""States whose progress is the part of the dataset that was read."""


def progress_figures(report: Report) -> dict[str, str]:
    """Text by the name of the figure; figures without a value are left out."""
    p = report.progress
    figures = {
        "epoch": f"{p.epoch}/{p.epochs}" if p.epochs else "",
        "step": f"{p.step}/{p.steps}" if p.step else "",
        "img/s": f"{p.images_per_second:.1f}" if p.images_per_second else "",
        "loss": f"{p.loss:.4f}" if p.loss is not None else "",
        **{label: f"{value:.3f}" for label, value in p.labelled.items()},
        "ETA": duration(max((p.eta - datetime.now(UTC)).total_seconds(), 0)) if p.eta else "",
    }
    return {name: value for name, value in figures.items() if value}


def _staged(progress: Progress) -> str:
    """How much of the dataset has been staged."""
    staged = byte_size(progress.staged_bytes or 0)
    return f"{staged} of {byte_size(progress.dataset_bytes)}" if progress.dataset_bytes else staged


def epochs_done(progress: Progress) -> float:
    """Epochs done, including the fraction of the current one."""
    part = progress.step / progress.steps if progress.steps else 0.0
    return min(progress.epoch + part, progress.epochs)


def stacked_bar(parts: dict[TimePart, float], width: int = 60) -> RenderableType:
    """One bar with a segment for each part, and a legend."""
    total = sum(parts.values()) or 1.0
    bar, legend = Text(), Text()
    used, exact = 0, 0.0
    for part, seconds in parts.items():
        exact += seconds / total * width
        cells = round(exact) - used
        used += cells
        bar.append("█" * cells, style=part.colour)
        if seconds / total >= 0.005:
            legend.append("■ ", style=part.colour)
            legend.append(f"{part.label} {seconds / total:.0%}  ", style="none")
    return Group(bar, legend)


def report_panel(name: str, report: Report | None) -> RenderableType:
    """The live panel of a run."""
    if report is None:
        return Text(f"{name}: starting", style="bold")
    title = Text.assemble((name, "bold"), f"  {report.state.value.lower()}")
    if report.device:
        processes = f"{report.world_size} × " if report.world_size > 1 else ""
        title.append(f"  {processes}{report.device}, {report.precision}", style="dim")
    lines: list[RenderableType] = [title]
    if report.state in READING and report.progress.staged_bytes is not None:
        grid = Table.grid(padding=(0, 2))
        total = report.progress.dataset_bytes
        grid.add_row(ProgressBar(total=total, completed=report.progress.staged_bytes, width=60, pulse=not total))
        grid.add_row(Text(_staged(report.progress)))
        lines.append(grid)
    if report.progress.epochs:
        bar = Table.grid()  # a progress bar on its own does not end its line
        bar.add_row(ProgressBar(total=report.progress.epochs, completed=epochs_done(report.progress), width=60))
        lines.append(bar)
        grid = Table.grid(padding=(0, 2))
        figures = progress_figures(report)
        grid.add_row(*(Text(key, style="dim") for key in figures))
        grid.add_row(*figures.values())
        lines.append(grid)
        lines.append(stacked_bar(report.timing.spent))
    lines.extend(Text(f"! {warning}", style="yellow") for warning in report.warnings)
    return Group(*lines)


class LiveView:
    """Shows reports: as a live panel on a terminal, otherwise as a line per epoch."""

    def __init__(self, name: str, console: Console) -> None:
        self._name = name
        self._console = console
        self._live = (
            Live(report_panel(name, None), console=console, refresh_per_second=4) if console.is_terminal else None
        )
        self._last_key: tuple[TrainerState, int, int] | None = None

    def __enter__(self) -> LiveView:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def update(self, report: Report) -> None:
        if self._live:
            self._live.update(report_panel(self._name, report))
            return
        p = report.progress
        tenths = 10 * (p.staged_bytes or 0) // p.dataset_bytes if p.dataset_bytes else 0
        key = (TrainerState.TRAINING if p.epochs else report.state, p.epoch, tenths)
        if key != self._last_key:
            self._last_key = key
            figures = progress_figures(report)
            staged = f" {_staged(p)}" if p.staged_bytes is not None and report.state in READING else ""
            text = "  ".join(f"{k} {v}" for k, v in figures.items() if k != "step")
            text = text or f"{report.state.value.lower()}{staged}"
            print_line(self._console, f"{self._name}: {text}")


def show_trials(report: TuningReport, console: Console) -> None:
    """Print the trials and the chosen settings."""
    table = Table(box=None)
    table.add_column("setting")
    table.add_column("img/s", justify="right")
    table.add_column("")
    table.add_column("verdict")
    fastest = max((trial.images_per_second or 0.0 for trial in report.trials), default=0.0)
    for trial in report.trials:
        rate = trial.images_per_second
        bar = (
            Bar(fastest, 0, rate, width=30, color="green" if trial.verdict == "kept" else "bright_black")
            if rate
            else ""
        )
        table.add_row(trial.settings, f"{rate:.1f}" if rate else "", bar, trial.verdict)
    print_table(console, table, title="Trials")
    chosen = ", ".join(f"{name}={value}" for name, value in report.chosen.items())
    print_line(console, f"Chosen: {chosen}")


def show_summary(name: str, report: Report, console: Console) -> None:
    """Print the summary of a run that succeeded."""
    parts = report.timing.spent
    total = sum(parts.values())
    table = Table(box=None)
    table.add_column("part")
    table.add_column("time", justify="right")
    table.add_column("share", justify="right")
    table.add_column("")
    for part, seconds in parts.items():
        bar = Bar(total, 0, seconds, width=30, color=part.colour)
        table.add_row(part.label, duration(seconds), f"{seconds / total:.1%}", bar)
    print_table(console, table, title=f"{name}: where {duration(total)} went")
    if report.tuning:
        show_trials(report.tuning, console)
    for warning in report.warnings:
        print_line(console, f"! {warning}", style="yellow")
    if result := report.result:
        print_line(console, f"\nBest model: {metrics_line(result.labelled) or 'not validated'}", style="bold")
        print_line(console, result.weights)
        sheet = Path(result.weights).parent.parent / PREDICTIONS
        if sheet.exists():
            print_line(console, f"Predictions: {sheet}")
        print_line(console, f"Try it: yolo predict model={result.weights} source=IMAGE", style="dim")
