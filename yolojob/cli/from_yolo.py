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

MAX_BYTES = 1 << 20
"""Size limit of a file with settings."""


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
        NotConvertible: it cannot be read, or holds no settings.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise NotConvertible(f"{path}: is larger than {MAX_BYTES >> 20} MiB")
        content = yaml.safe_load(text)
    except OSError as error:
        raise NotConvertible(f"{path}: {error.strerror}") from None
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise NotConvertible(f"{path}: is not YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise NotConvertible(f"{path}: must hold settings, one NAME: VALUE in each line")
    return content
