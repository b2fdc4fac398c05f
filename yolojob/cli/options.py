"""Options, arguments, output formats and error handling that the commands share."""

from __future__ import annotations

import enum
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

from yolojob.api import manifest
from yolojob.api.constants import ExitCode
from yolojob.api.errors import UserError
from yolojob.cli.console import SafeConsole, echo
from yolojob.client.client import Client
from yolojob.client.kubeconfig import contexts

CLOSED_PIPE = 141
"""Exit code after a closed pipe: 128 + SIGPIPE, as shells report it. It differs from 1, a training that failed."""


def complete_job_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of the jobs that start with `incomplete`, for the shell's completion."""
    try:
        jobs = Client(ctx.params.get("context"), ctx.params.get("namespace")).list()
    except UserError:
        return []
    return [job.metadata.name for job in jobs if job.metadata.name.startswith(incomplete)]


def complete_contexts(incomplete: str) -> list[str]:
    return [name for name in contexts() if name.startswith(incomplete)]


ManifestFile = Annotated[Path, typer.Argument(metavar="FILE", help="Manifest with one YoloTrainingJob.")]
Name = Annotated[
    str, typer.Argument(metavar="NAME", help="The job's metadata.name.", autocompletion=complete_job_names)
]
Context = Annotated[
    str | None,
    typer.Option(help="Context of the kubeconfig. Default: its current context.", autocompletion=complete_contexts),
]
Namespace = Annotated[str | None, typer.Option("--namespace", "-n", help="Default: the namespace of the context.")]

VolumesFolder = Annotated[Path, typer.Option(help="Folder in which pvc://CLAIM/PATH is CLAIM/PATH.")]
CacheFolder = Annotated[Path, typer.Option(envvar="YOLOJOB_CACHE_DIR", help="Folder for staged datasets.")]
MeasurementsFolder = Annotated[Path, typer.Option("--measurements", help="Folder for the results of benches.")]
BenchSeconds = Annotated[
    int, typer.Option(min=5, max=600, help="Duration of a bench's measurements, after its start-up.")
]
CatalogueFile = Annotated[
    Path | None,
    typer.Option("--catalogue", help="File with your own machines and accelerators; see docs/costs.md."),
]
AssumeSettings = Annotated[
    list[str] | None,
    typer.Option("--assume", metavar="KEY=VALUE", help="An assumption, such as electricityPrice=0.3; repeatable."),
]
AssumptionsFile = Annotated[Path | None, typer.Option("--assumptions", help="YAML file with assumptions by name.")]
TrainingImages = Annotated[
    int | None,
    typer.Option(min=1, help="Number of training images, for a dataset that is a remote archive."),
]
DEFAULT_VOLUMES = Path("volumes")
DEFAULT_CACHE = Path("~/.cache/yolojob")
DEFAULT_MEASUREMENTS = Path("measurements")
DEFAULT_BENCH_SECONDS = 45


class FigureOutput(enum.StrEnum):
    """Output formats of the commands that compute figures."""

    TEXT = "text"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"

    @property
    def is_text(self) -> bool:
        """Whether it is for people."""
        return self in (FigureOutput.TEXT, FigureOutput.WIDE)


class ObjectOutput(enum.StrEnum):
    """Output formats of the commands that print Kubernetes objects."""

    TEXT = "text"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


FigureFormat = Annotated[
    FigureOutput,
    typer.Option(
        "--output",
        "-o",
        help="text: tables for people, 80 columns wide. wide: with all columns. json, yaml: for programs.",
    ),
]
ObjectFormat = Annotated[
    ObjectOutput,
    typer.Option(
        "--output", "-o", help="text: a table. json, yaml: the whole object. name: TYPE/NAME only, for programs."
    ),
]


def dump(content: Any, output: FigureOutput | ObjectOutput) -> None:
    """Print plain data as JSON or YAML."""
    text = json.dumps(content, indent=2)
    if output.value == "yaml":
        # By way of JSON: safe_dump refuses the enum members that JSON writes as their values.
        text = yaml.safe_dump(json.loads(text), sort_keys=False)
    typer.echo(text.rstrip())


def text_console(output: FigureOutput) -> Console:
    """The console for people: stdout, or stderr when stdout carries JSON or YAML."""
    return SafeConsole(stderr=not output.is_text)


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Print expected errors in one line each, and exit with their code."""
    try:
        yield
    except manifest.InvalidManifest as error:
        for fault in error.faults:
            echo(f"error: {fault}", err=True)
        raise typer.Exit(ExitCode.BAD_INPUT) from None
    except UserError as error:
        echo(f"error: {error}", err=True)
        raise typer.Exit(error.code) from None
    except BrokenPipeError:
        # The reader has closed the pipe, as `| head` does. Without this, Python's flush at exit would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(CLOSED_PIPE) from None
    except OSError as error:
        echo(f"error: {error}", err=True)
        raise typer.Exit(ExitCode.BAD_INPUT) from None
