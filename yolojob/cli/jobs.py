"""The verbs for jobs in a cluster, with kubectl's conventions. `yolojob.client` does the work."""

from __future__ import annotations

import enum
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console
from rich.live import Live

from yolojob.api import constants, manifest
from yolojob.api.constants import ExitCode
from yolojob.api.errors import UserError
from yolojob.api.job import YoloTrainingJob
from yolojob.api.status import Phase
from yolojob.cli import live_view
from yolojob.client.client import Client, ClusterError
from yolojob.client.kubeconfig import contexts

app = typer.Typer()
CLOSED_PIPE = 141
"""128 + SIGPIPE, as a shell says it; not the 1 of a training that failed."""


def _names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Jobs whose names begin so, for the shell's completion."""
    try:
        found = Client(ctx.params.get("context"), ctx.params.get("namespace")).list()
    except UserError:
        return []
    return [job.metadata.name for job in found if job.metadata.name.startswith(incomplete)]


def _contexts(incomplete: str) -> list[str]:
    return [name for name in contexts() if name.startswith(incomplete)]


Name = Annotated[str, typer.Argument(metavar="NAME", help="The job's metadata.name.", autocompletion=_names)]
Context = Annotated[
    str | None,
    typer.Option(help="Context of the kubeconfig; its current one unless given.", autocompletion=_contexts),
]
Namespace = Annotated[str | None, typer.Option("--namespace", "-n", help="The context's own unless given.")]


class Output(enum.StrEnum):
    TEXT = "text"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


As = Annotated[
    Output,
    typer.Option(
        "--output", "-o", help="json or yaml print the whole object, name only what it is called: for programs."
    ),
]


@contextmanager
def told() -> Iterator[None]:
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


def _print(jobs: list[YoloTrainingJob], output: Output, console: Console, *, one: bool) -> None:
    if output is Output.TEXT:
        live_view.jobs(jobs, console)
        return
    if output is Output.NAME:
        for job in jobs:
            typer.echo(f"{constants.KIND.lower()}.{constants.GROUP}/{job.metadata.name}")
        return
    objects = [job.to_json() for job in jobs]
    content = objects[0] if one else {"apiVersion": "v1", "kind": "List", "items": objects}
    if output is Output.JSON:
        typer.echo(json.dumps(content, indent=2))
    else:
        typer.echo(yaml.safe_dump(content, sort_keys=False), nl=False)


@app.command()
def submit(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Manifest with one YoloTrainingJob.")],
    context: Context = None,
    namespace: Namespace = None,
    follow: Annotated[bool, typer.Option("--watch", "-w", help="Show its progress until it ends.")] = False,
) -> None:
    """Create a job in the cluster, from the same manifest that `yolojob run` takes."""
    with told():
        document, beside = manifest.load_beside(file)
        job = manifest.parse(document)
        client = Client(context, namespace or job.metadata.namespace)
        made = client.submit(job)
        for other in beside:
            typer.echo(f"{other}: left alone; `kubectl apply --filename {file}` creates it", err=True)
        typer.echo(f"{made.metadata.name}: submitted to namespace {client.namespace}")
        if follow:
            _watch(client, made.metadata.name)


@app.command()
def get(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="One job; all of the namespace unless given.", autocompletion=_names),
    ] = None,
    output: As = Output.TEXT,
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """List jobs, or one of them."""
    with told():
        client = Client(context, namespace)
        jobs = [client.get(name)] if name is not None else client.list()
        if not jobs and output is Output.TEXT:
            typer.echo(f"No jobs in namespace {client.namespace}.", err=True)
            return
        _print(jobs, output, live_view.console(), one=name is not None)


@app.command()
def describe(name: Name, context: Context = None, namespace: Namespace = None) -> None:
    """Tell a job's story: conditions, events, where the time went."""
    with told():
        client = Client(context, namespace)
        live_view.story(client.get(name), client.events(name), live_view.console())


@app.command()
def watch(name: Name, context: Context = None, namespace: Namespace = None) -> None:
    """Show a job's progress until it ends; exits 1 when it has failed."""
    with told():
        _watch(Client(context, namespace), name)


def _watch(client: Client, name: str) -> None:
    console = live_view.console()
    job = client.get(name)
    live = Live(live_view.job_panel(job), console=console, refresh_per_second=4) if console.is_terminal else None
    shown = ""
    if live:
        live.start()
    try:
        for change, job in client.watch(name, known=True):
            if change == "DELETED":
                raise ClusterError(f"{name} was deleted")
            if live:
                live.update(live_view.job_panel(job))
            elif (line := live_view.job_line(job)) != shown:
                shown = line
                console.print(line, highlight=False, soft_wrap=True)
            if job.has_ended:
                break
    finally:
        if live:
            live.stop()
    if job.status and job.status.phase is Phase.FAILED:
        raise typer.Exit(ExitCode.FAILED)


@app.command()
def logs(
    name: Name,
    worker: Annotated[int | None, typer.Option("--worker", min=0, help="One worker; all of them unless given.")] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Wait for the workers to start, and go on as lines come.")
    ] = False,
    tail: Annotated[
        int | None, typer.Option("--tail", min=0, help="Only so many of each worker's last lines, to begin with.")
    ] = None,
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """Print what the workers say; of several, each line with its worker's number."""
    with told():
        client = Client(context, namespace)
        if follow and (job := client.get(name)) and not (job.status and job.status.phase is Phase.RUNNING):
            typer.echo(live_view.job_line(job), err=True)  # why there may be nothing to read for a while
        for index, line in client.logs(name, worker, follow=follow, tail=tail):
            typer.echo(line if worker is not None else f"[{index}] {line}")


@app.command()
def suspend(name: Name, context: Context = None, namespace: Namespace = None) -> None:
    """Stop a job's pods, and keep its checkpoint."""
    with told():
        Client(context, namespace).suspend(name)
        typer.echo(f"{name}: suspended")


@app.command()
def resume(name: Name, context: Context = None, namespace: Namespace = None) -> None:
    """Let a suspended job go on."""
    with told():
        Client(context, namespace).resume(name)
        typer.echo(f"{name}: resumed")


@app.command()
def scale(
    name: Name,
    replicas: Annotated[int, typer.Option(min=1, help="Number of workers.")],
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """Change the number of workers of an elastic, or of a suspended job."""
    with told():
        Client(context, namespace).scale(name, replicas)
        typer.echo(f"{name}: scaled to {replicas}")


@app.command()
def delete(name: Name, context: Context = None, namespace: Namespace = None) -> None:
    """Delete a job and its pods; what is in its storage stays."""
    with told():
        Client(context, namespace).delete(name)
        typer.echo(f"{name}: deleted")
