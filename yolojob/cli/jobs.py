"""The verbs for jobs in a cluster, with kubectl's conventions. `yolojob.client` does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from yolojob.api import constants, manifest
from yolojob.api.constants import ExitCode
from yolojob.api.errors import ClusterError
from yolojob.api.job import YoloTrainingJob
from yolojob.api.status import JobPhase
from yolojob.cli import job_view, live_view
from yolojob.cli.options import (
    Context,
    Name,
    Namespace,
    ObjectFormat,
    ObjectOutput,
    complete_job_names,
    dump,
    exit_on_error,
)
from yolojob.client.client import Client

app = typer.Typer()


def _print(jobs: list[YoloTrainingJob], output: ObjectOutput, console: Console, *, one: bool) -> None:
    if output is ObjectOutput.TEXT:
        job_view.show_jobs(jobs, console)
        return
    if output is ObjectOutput.NAME:
        for job in jobs:
            typer.echo(f"{constants.KIND.lower()}.{constants.GROUP}/{job.metadata.name}")
        return
    objects = [job.to_json() for job in jobs]
    content = objects[0] if one else {"apiVersion": "v1", "kind": "List", "items": objects}
    dump(content, output)


@app.command()
def submit(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Manifest with one YoloTrainingJob.")],
    context: Context = None,
    namespace: Namespace = None,
    follow: Annotated[bool, typer.Option("--watch", "-w", help="Show its progress until it ends.")] = False,
) -> None:
    """Create a job in the cluster, from the same manifest that `yolojob run` takes."""
    with exit_on_error():
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
        typer.Argument(
            metavar="[NAME]", help="One job; all of the namespace unless given.", autocompletion=complete_job_names
        ),
    ] = None,
    output: ObjectFormat = ObjectOutput.TEXT,
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """List jobs, or one of them."""
    with exit_on_error():
        client = Client(context, namespace)
        jobs = [client.get(name)] if name is not None else client.list()
        if not jobs and output is ObjectOutput.TEXT:
            typer.echo(f"No jobs in namespace {client.namespace}.", err=True)
            return
        _print(jobs, output, live_view.plain_console(), one=name is not None)


@app.command()
def describe(name: Name, context: Context = None, namespace: Namespace = None) -> None:
    """Tell a job's story: conditions, events, where the time went."""
    with exit_on_error():
        client = Client(context, namespace)
        job_view.describe_job(client.get(name), client.events(name), live_view.plain_console())


@app.command()
def watch(name: Name, context: Context = None, namespace: Namespace = None) -> None:
    """Show a job's progress until it ends; exits 1 when it has failed."""
    with exit_on_error():
        _watch(Client(context, namespace), name)


def _watch(client: Client, name: str) -> None:
    console = live_view.plain_console()
    job = client.get(name)
    live = Live(job_view.job_panel(job), console=console, refresh_per_second=4) if console.is_terminal else None
    shown = ""
    if live:
        live.start()
    try:
        for change, job in client.watch(name, known=True):
            if change == "DELETED":
                raise ClusterError(f"{name} was deleted")
            if live:
                live.update(job_view.job_panel(job))
            elif (line := job_view.job_line(job)) != shown:
                shown = line
                console.print(line, highlight=False, soft_wrap=True)
            if job.has_ended:
                break
    finally:
        if live:
            live.stop()
    if job.status and job.status.phase is JobPhase.FAILED:
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
    with exit_on_error():
        client = Client(context, namespace)
        if follow and (job := client.get(name)) and not (job.status and job.status.phase is JobPhase.RUNNING):
            typer.echo(job_view.job_line(job), err=True)  # why there may be nothing to read for a while
        for index, line in client.logs(name, worker, follow=follow, tail=tail):
            typer.echo(line if worker is not None else f"[{index}] {line}")


@app.command()
def suspend(name: Name, context: Context = None, namespace: Namespace = None) -> None:
    """Stop a job's pods, and keep its checkpoint."""
    with exit_on_error():
        Client(context, namespace).suspend(name)
        typer.echo(f"{name}: suspended")


@app.command()
def resume(name: Name, context: Context = None, namespace: Namespace = None) -> None:
    """Let a suspended job go on."""
    with exit_on_error():
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
    with exit_on_error():
        Client(context, namespace).scale(name, replicas)
        typer.echo(f"{name}: scaled to {replicas}")


@app.command()
def delete(name: Name, context: Context = None, namespace: Namespace = None) -> None:
    """Delete a job and its pods; what is in its storage stays."""
    with exit_on_error():
        Client(context, namespace).delete(name)
        typer.echo(f"{name}: deleted")
