"""`yolojob validate`: checks a manifest."""

from __future__ import annotations

import typer

from yolojob.api import manifest
from yolojob.cli.options import ManifestFile, exit_on_error


def validate(file: ManifestFile) -> None:
    """Check a manifest, and print every fault with its field path.

    A manifest that is valid here is valid for the cluster's API server, and vice versa.
    """
    with exit_on_error():
        job = manifest.parse(manifest.load(file))
    workers = job.spec.workers
    typer.echo(
        f"{job.metadata.name}: valid. {workers.replicas} worker(s) × {workers.processes} process(es), "
        f"global batch {job.spec.train.batch}, {job.spec.train.epochs} epoch(s) of {job.spec.dataset.uri}"
    )
