"""The command line `yolojob`: registers the commands, one module for each."""

from __future__ import annotations

from typing import Annotated

import typer

from yolojob import __version__
from yolojob.cli import convert, jobs
from yolojob.cli.bench import bench
from yolojob.cli.check import check
from yolojob.cli.compare import compare
from yolojob.cli.crd import crd
from yolojob.cli.estimate import estimate
from yolojob.cli.from_yolo import from_yolo
from yolojob.cli.report import report
from yolojob.cli.run import run
from yolojob.cli.validate import validate

app = typer.Typer(
    name="yolojob",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"yolojob {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Train YOLO models: here, or on Kubernetes with the same manifest.

    Exit codes: 0 success, 1 the training failed, 2 bad input, 130 interrupted with Ctrl-C (the state is saved; the same
    command resumes).
    """


COMMANDS = (
    validate,
    from_yolo,
    crd,
    check,
    run,
    jobs.submit,
    jobs.get,
    jobs.describe,
    jobs.watch,
    jobs.logs,
    jobs.suspend,
    jobs.resume,
    jobs.scale,
    jobs.delete,
    bench,
    estimate,
    compare,
    report,
)
"""In the order of `yolojob --help`."""
for command in COMMANDS:
    app.command()(command)
app.add_typer(convert.app, name="convert")


def main() -> None:
    app()
