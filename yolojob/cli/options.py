"""Options, arguments and error handling that all commands share."""

from __future__ import annotations

import enum
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
import yaml

from yolojob.api import manifest
from yolojob.api.constants import ExitCode
from yolojob.api.errors import UserError
from yolojob.client.client import Client
from yolojob.client.kubeconfig import contexts

CLOSED_PIPE = 141
"""128 + SIGPIPE, as a shell says it; not the 1 of a training that failed."""


def complete_job_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Jobs whose names begin so, for the shell's completion."""
    try:
        found = Client(ctx.params.get("context"), ctx.params.get("namespace")).list()
    except UserError:
        return []
    return [job.metadata.name for job in found if job.metadata.name.startswith(incomplete)]


def complete_contexts(incomplete: str) -> list[str]:
    return [name for name in contexts() if name.startswith(incomplete)]


Name = Annotated[
    str, typer.Argument(metavar="NAME", help="The job's metadata.name.", autocompletion=complete_job_names)
]


Context = Annotated[
    str | None,
    typer.Option(help="Context of the kubeconfig; its current one unless given.", autocompletion=complete_contexts),
]


Namespace = Annotated[str | None, typer.Option("--namespace", "-n", help="The context's own unless given.")]


class FigureOutput(enum.StrEnum):
    """How a command that computes figures prints them."""

    TEXT = "text"
    JSON = "json"
    YAML = "yaml"


class ObjectOutput(enum.StrEnum):
    """How a command that prints Kubernetes objects prints them."""

    TEXT = "text"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


FigureFormat = Annotated[
    FigureOutput, typer.Option("--output", "-o", help="text: tables for people. json, yaml: for programs.")
]
ObjectFormat = Annotated[
    ObjectOutput,
    typer.Option(
        "--output", "-o", help="text: a table. json, yaml: the whole object. name: TYPE/NAME only, for programs."
    ),
]


def dump(content: Any, output: FigureOutput | ObjectOutput) -> None:
    """Print plain data as JSON or YAML."""
    text = json.dumps(content, indent=2) if output.value == "json" else yaml.safe_dump(content, sort_keys=False)
    typer.echo(text.rstrip())


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Errors as one line, and the exit code for what the user can mend."""
    try:
        yield
    except manifest.InvalidManifest as error:
        for fault in error.faults:
            typer.echo(f"error: {fault}", err=True)
        raise typer.Exit(ExitCode.BAD_INPUT) from None
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.code) from None
    except BrokenPipeError:
        # Who reads has enough, as of `| head`. Python would write what is left once more, at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(CLOSED_PIPE) from None
    except OSError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(ExitCode.BAD_INPUT) from None
