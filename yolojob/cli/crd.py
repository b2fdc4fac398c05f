"""`yolojob crd`: prints the CustomResourceDefinition."""

from __future__ import annotations

import typer


def crd() -> None:
    """Print the CustomResourceDefinition: `yolojob crd | kubectl apply -f -`."""
    from yolojob.api.crd import render

    typer.echo(render(), nl=False)
