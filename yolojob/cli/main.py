"""The command line: `yolojob`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from yolojob import __version__
from yolojob.api import manifest
from yolojob.api.constants import ExitCode
from yolojob.api.trainer_report import Report
from yolojob.cli import estimates, jobs, live_view
from yolojob.cli.local_run_view import INTERRUPTED, follow_local_run, own_code
from yolojob.cli.options import FigureFormat, FigureOutput, dump
from yolojob.client.local_run import LocalRun, Places

app = typer.Typer(
    name="yolojob",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
Manifest = Annotated[Path, typer.Argument(metavar="FILE", help="Manifest with one YoloTrainingJob.")]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"yolojob {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Train YOLO detectors: here, or on Kubernetes with the same manifest.

    Exit codes: 0 done, 1 the training failed, 2 bad input, 130 interrupted with Ctrl-C (saved; run again to go on).
    """


def _refuse(error: manifest.InvalidManifest) -> typer.Exit:
    for fault in error.faults:
        typer.echo(f"error: {fault}", err=True)
    return typer.Exit(ExitCode.BAD_INPUT)


@app.command()
def validate(file: Manifest) -> None:
    """Check a manifest, and print every fault with its field path.

    What passes here passes the cluster's API server, and the other way round.
    """
    try:
        job = manifest.parse(manifest.load(file))
    except manifest.InvalidManifest as error:
        raise _refuse(error) from None
    workers = job.spec.workers
    typer.echo(
        f"{job.metadata.name}: valid. {workers.replicas} worker(s) × {workers.processes} process(es), "
        f"global batch {job.spec.train.batch}, {job.spec.train.epochs} epoch(s) of {job.spec.dataset.uri}"
    )


@app.command()
def crd() -> None:
    """Print the CustomResourceDefinition: `yolojob crd | kubectl apply -f -`."""
    from yolojob.api.crd import render

    typer.echo(render(), nl=False)


@app.command()
def run(
    file: Manifest,
    output: FigureFormat = FigureOutput.TEXT,
    runs: Annotated[Path, typer.Option(help="Where a run without spec.storage leaves its results.")] = Path("runs"),
    volumes: Annotated[Path, typer.Option(help="Where pvc://CLAIM/PATH is found as CLAIM/PATH.")] = Path("volumes"),
    cache: Annotated[Path, typer.Option(envvar="YOLOJOB_CACHE_DIR", help="Where staged data sets are kept.")] = Path(
        "~/.cache/yolojob"
    ),
    trace: Annotated[
        bool, typer.Option("--trace", help="Record a few steps as a Chrome trace, for ui.perfetto.dev.")
    ] = False,
    trace_steps: Annotated[int, typer.Option(min=1, max=1000, help="How many steps --trace records.")] = 5,
) -> None:
    """Train here, without a cluster, from the same manifest.

    Starts spec.workers.replicas × processesPerWorker training processes on this machine, which train together as the
    cluster's workers would. Ctrl-C saves; the same command goes on where it stopped.
    """
    try:
        job = manifest.parse(manifest.load(file))
        local = LocalRun(
            job, Places(runs=runs, volumes=volumes, cache=cache.expanduser()), trace_steps=trace_steps if trace else 0
        )
    except manifest.InvalidManifest as error:
        raise _refuse(error) from None
    name = job.metadata.name
    console = Console(stderr=output is not FigureOutput.TEXT)
    code, interrupted = follow_local_run(local, live_view.LiveView(name, console))
    report = local.report(code)
    local.close(code)
    if output is not FigureOutput.TEXT:
        dump(report.model_dump(mode="json", by_alias=True, exclude_none=True), output)
    raise typer.Exit(
        _conclude(name, local, report, code, interrupted, console if output is FigureOutput.TEXT else None)
    )


def _conclude(name: str, local: LocalRun, report: Report, code: int, interrupted: bool, console: Console | None) -> int:
    """Say how it ended; the command's own exit code."""
    if code == ExitCode.SUCCEEDED:
        if console:
            if report.resumed_from and report.progress.epoch == report.progress.epochs:
                console.print(f"{name}: finished. To train anew, remove {local.output}", soft_wrap=True)
            live_view.show_summary(name, report, console)
        return ExitCode.SUCCEEDED
    if interrupted:
        typer.echo(f"{name}: stopped. The state is in {local.output}; run the same command to go on.", err=True)
        return INTERRUPTED
    assert report.failure is not None
    typer.echo(f"error: {report.failure.reason}: {report.failure.message}", err=True)
    if code != ExitCode.BAD_INPUT:
        typer.echo(f"The log is {local.log}", err=True)
    return own_code(code)


app.add_typer(jobs.app)
app.add_typer(estimates.app)


def main() -> None:
    app()
