"""Commands for jobs in a cluster, with kubectl's conventions. `yolojob.client` does the work."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from yolojob.api import constants, manifest
from yolojob.api.constants import ExitCode
from yolojob.api.errors import ClusterError
from yolojob.api.job import YoloTrainingJob
from yolojob.api.status import JobPhase
from yolojob.cli import job_view
from yolojob.cli.console import echo, plain_console, print_line
from yolojob.cli.options import (
    Context,
    ManifestFile,
    Name,
    Namespace,
    ObjectFormat,
    ObjectOutput,
    complete_job_names,
    dump,
    exit_on_error,
)
from yolojob.client.client import Client


def _print_jobs(jobs: list[YoloTrainingJob], output: ObjectOutput, console: Console, *, as_list: bool) -> None:
    """Print jobs in the given format; as_list: JSON and YAML are a List, also of one job."""
    if output is ObjectOutput.TEXT:
        job_view.show_jobs(jobs, console)
        return
    if output is ObjectOutput.NAME:
        for job in jobs:
            typer.echo(f"{constants.KIND.lower()}.{constants.GROUP}/{job.metadata.name}")
        return
    objects = [job.to_json() for job in jobs]
    content = {"apiVersion": "v1", "kind": "List", "items": objects} if as_list else objects[0]
    dump(content, output)


def submit(
    file: ManifestFile,
    context: Context = None,
    namespace: Namespace = None,
    follow: Annotated[bool, typer.Option("--watch", "-w", help="Show the progress until the job ends.")] = False,
) -> None:
    """Create a job in the cluster, from the same manifest that `yolojob run` takes."""
    with exit_on_error():
        document, others = manifest.load_with_others(file)
        job = manifest.parse(document)
        client = Client(context, namespace or job.metadata.namespace)
        created = client.submit(job)
        for other in others:
            typer.echo(f"{other}: not created; create it with `kubectl apply --filename {file}`", err=True)
        typer.echo(f"{created.metadata.name}: submitted to namespace {client.namespace}")
        if follow:
            _watch(client, created.metadata.name)


def get(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", help="One job. Default: all jobs of the namespace.", autocompletion=complete_job_names
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
        _print_jobs(jobs, output, plain_console(), as_list=name is None)


def describe(name: Name, context: Context = None, namespace: Namespace = None) -> None:
    """Show a job in full: conditions, events, where the time went."""
    with exit_on_error():
        client = Client(context, namespace)
        job_view.describe_job(client.get(name), client.events(name), plain_console())


def watch(name: Name, context: Context = None, namespace: Namespace = None) -> None:
    """Show a job's progress until it ends; exits with 1 if it failed."""
    with exit_on_error():
        _watch(Client(context, namespace), name)


def _watch(client: Client, name: str) -> None:
    console = plain_console()
    job = client.get(name)
    live = Live(job_view.job_panel(job), console=console, refresh_per_second=4) if console.is_terminal else None
    last_line = ""
    if live:
        live.start()
    try:
        for change, job in client.watch(name, known=True):
            if change == "DELETED":
                raise ClusterError(f"{name} was deleted")
            if live:
                live.update(job_view.job_panel(job))
            elif (line := job_view.job_line(job)) != last_line:
                last_line = line
                print_line(console, line)
            if job.has_ended:
                break
    finally:
        if live:
            live.stop()
    if job.status and job.status.phase is JobPhase.FAILED:
        raise typer.Exit(ExitCode.FAILED)


def logs(
    name: Name,
    worker: Annotated[
        int | None, typer.Option("--worker", min=0, help="Number of one worker. Default: all workers.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Wait for the workers to start, and print new lines as they come.")
    ] = False,
    tail: Annotated[
        int | None, typer.Option("--tail", min=0, help="Start with the last N lines of each worker.")
    ] = None,
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """Print the workers' logs; with several workers, each line starts with the worker's number."""
    with exit_on_error():
        client = Client(context, namespace)
        if follow and (job := client.get(name)) and not (job.status and job.status.phase is JobPhase.RUNNING):
            echo(job_view.job_line(job), err=True)  # explains why no lines may come for a while
        with closing(client.logs(name, worker, follow=follow, tail=tail)) as lines:
            for index, line in lines:
                echo(line if worker is not None else f"[{index}] {line}")


def suspend(name: Name, context: Context = None, namespace: Namespace = None) -> None:
    """Stop a job's pods and keep its checkpoint."""
    with exit_on_error():
        Client(context, namespace).suspend(name)
        typer.echo(f"{name}: suspended")


def resume(name: Name, context: Context = None, namespace: Namespace = None) -> None:
    """Resume a suspended job."""
    with exit_on_error():
        Client(context, namespace).resume(name)
        typer.echo(f"{name}: resumed")


def scale(
    name: Name,
    replicas: Annotated[int, typer.Option(min=1, help="Number of workers.")],
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """Change the number of workers of an elastic or a suspended job."""
    with exit_on_error():
        Client(context, namespace).scale(name, replicas)
        typer.echo(f"{name}: scaled to {replicas}")


def delete(name: Name, context: Context = None, namespace: Namespace = None) -> None:
    """Delete a job and its pods; its storage is kept."""
    with exit_on_error():
        Client(context, namespace).delete(name)
        typer.echo(f"{name}: deleted")
