"""`yolojob run`: trains on this machine, without a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from yolojob.api import manifest
from yolojob.api.constants import ExitCode
from yolojob.api.trainer_report import Report
from yolojob.cli import live_view
from yolojob.cli.console import echo, print_line
from yolojob.cli.local_run_view import INTERRUPTED, command_exit_code, follow_local_run
from yolojob.cli.options import (
    DEFAULT_CACHE,
    DEFAULT_VOLUMES,
    CacheFolder,
    FigureFormat,
    FigureOutput,
    ManifestFile,
    VolumesFolder,
    dump,
    exit_on_error,
    text_console,
)
from yolojob.client.local_run import LocalRun, Places


def run(
    file: ManifestFile,
    output: FigureFormat = FigureOutput.TEXT,
    runs: Annotated[Path, typer.Option(help="Folder for the results of a run without spec.storage.")] = Path("runs"),
    volumes: VolumesFolder = DEFAULT_VOLUMES,
    cache: CacheFolder = DEFAULT_CACHE,
    trace: Annotated[
        bool, typer.Option("--trace", help="Record a few steps as a Chrome trace, for ui.perfetto.dev.")
    ] = False,
    trace_steps: Annotated[int, typer.Option(min=1, max=1000, help="Number of steps that --trace records.")] = 5,
) -> None:
    """Train here, without a cluster, from the same manifest.

    Starts spec.workers.replicas × processesPerWorker training processes on this machine, which train together as the
    cluster's workers would. Ctrl-C saves the state; the same command resumes from it.
    """
    with exit_on_error():
        job = manifest.parse(manifest.load(file))
        local = LocalRun(
            job, Places(runs=runs, volumes=volumes, cache=cache.expanduser()), trace_steps=trace_steps if trace else 0
        )
    name = job.metadata.name
    console = text_console(output)
    code, interrupted = follow_local_run(local, live_view.LiveView(name, console))
    report = local.report(code)
    local.close(code)
    if not output.is_text:
        dump(report.model_dump(mode="json", by_alias=True, exclude_none=True), output)
    if code == ExitCode.SUCCEEDED:
        if output.is_text:
            _show_success(local, report, console)
        raise typer.Exit(ExitCode.SUCCEEDED)
    if interrupted:
        typer.echo(f"{name}: stopped. The state is in {local.output}; run the same command to resume.", err=True)
        raise typer.Exit(INTERRUPTED)
    raise typer.Exit(_report_failure(local, report, code))


def _show_success(local: LocalRun, report: Report, console: Console) -> None:
    name = local.job.metadata.name
    if report.resumed_from and report.progress.epoch == report.progress.epochs:
        print_line(console, f"{name}: finished. To train from the start again, remove {local.output}")
    live_view.show_summary(name, report, console)


def _report_failure(local: LocalRun, report: Report, code: int) -> ExitCode:
    """Print why the trainer failed; the command's exit code."""
    assert report.failure is not None
    echo(f"error: {report.failure.reason}: {report.failure.message}", err=True)
    if code != ExitCode.BAD_INPUT:
        typer.echo(f"The log is {local.log}", err=True)
    return command_exit_code(code)
