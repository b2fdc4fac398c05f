"""`yolojob convert`: converts datasets and weights to the formats that trainings read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from yolojob.api.task import Task
from yolojob.cli.options import exit_on_error
from yolojob.client.local_run import require_trainer

app = typer.Typer(no_args_is_help=True, help="Convert datasets and weights to the formats that trainings read.")


@app.callback()
def _group() -> None:
    """Convert datasets and weights to the formats that trainings read."""


@app.command()
def data(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder with images and annotations.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="New folder for the converted dataset.")],
    task: Annotated[Task, typer.Option("--task", help="Task of the training: it decides what a label is.")] = (
        Task.DETECT
    ),
    val: Annotated[
        float,
        typer.Option(
            "--val", min=0, max=0.9, metavar="SHARE", help="Share of the images to validate with, if SRC has no split."
        ),
    ] = 0.0,
    link: Annotated[bool, typer.Option("--link", help="Make links to the images instead of copies.")] = False,
) -> None:
    """Convert annotations in COCO's JSON format or Pascal VOC's XML format to Ultralytics' layout.

    SRC may be an export of Roboflow, CVAT or Label Studio, or COCO's and Pascal VOC's own layout. It stays as it is. A
    training converts such a dataset by itself; convert by hand to look at the result, or to take a share of the images
    for the validation.

    Example: `yolojob convert data ~/export signs --task segment --val 0.1`
    """
    arguments = [str(source), str(target), "--task", task, "--val", str(val), *(["--link"] if link else [])]
    raise typer.Exit(_convert("data", arguments))


@app.command()
def weights(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="File of weights: .pt.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="New file: .safetensors.")],
) -> None:
    """Convert weights from a .pt file, which is a Python pickle, to a .safetensors file, which cannot hold code.

    SRC may be official weights, or the best.pt or last.pt of a training here or with `yolo train`. It is read as data,
    and refused if it names anything but tensors and the modules of YOLO networks. A training starts from DST as from
    SRC: set spec.model.weights.uri, and spec.model.name to the name of the file or to an architecture.

    Example: `yolojob convert weights runs/train/weights/best.pt best.safetensors`
    """
    raise typer.Exit(_convert("weights", [str(source), str(target)]))


def _convert(what: str, arguments: list[str]) -> int:
    """Run the conversion in a process of its own; return its exit code."""
    with exit_on_error():
        require_trainer()
    command = [sys.executable, "-m", "yolojob_trainer.convert", what, *arguments]
    return subprocess.run(command, check=False).returncode
