"""`yolojob from-yolo`: converts a command of Ultralytics into a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from yolojob.api import manifest
from yolojob.cli.options import exit_on_error
from yolojob.cli.yolo_command import NotConvertible, convert, parse_command
from yolojob.format import printable


def from_yolo(
    command: Annotated[
        str, typer.Argument(metavar="COMMAND", help="A `yolo` command in quotes, or the args.yaml of a finished run.")
    ],
) -> None:
    """Print the manifest for a `yolo` command, or for the args.yaml of a run of Ultralytics.

    Comments say what became of each argument that has another place in a manifest, and what to do with your files.

    `yolojob from-yolo 'yolo detect train data=coco8.yaml model=yolo26n.pt epochs=100 device=0,1' > job.yaml`
    """
    with exit_on_error():
        arguments = _read_settings(Path(command)) if _is_file(command) else parse_command(command)
        conversion = convert(arguments)
        manifest.parse(conversion.manifest)
    for note in conversion.notes:
        typer.echo(f"# {printable(note)}")
    typer.echo(yaml.safe_dump(conversion.manifest, sort_keys=False, allow_unicode=True), nl=False)


def _is_file(text: str) -> bool:
    return text.endswith((".yaml", ".yml")) and len(text.split()) == 1


def _read_settings(path: Path) -> dict[str, Any]:
    """Return the settings in a file.

    Raises:
        InvalidManifest: it cannot be read, or is not YAML.
        NotConvertible: it holds no settings.
    """
    found = manifest.read_documents(path)
    if len(found) != 1 or not isinstance(found[0], dict) or not all(isinstance(name, str) for name in found[0]):
        raise NotConvertible(f"{path}: must hold settings, one NAME: VALUE in each line")
    return dict(found[0])
