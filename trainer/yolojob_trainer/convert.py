"""Converts by hand, for `yolojob convert`.

- data: COCO JSON or Pascal VOC to Ultralytics' layout.
- weights: a .pt file to a .safetensors file.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from yolojob.api.constants import ExitCode
from yolojob.api.task import Task
from yolojob_trainer import environment

FIELD = "SRC"
FOLDER_MODE = 0o755
"""Of the new folder; a temporary one is only for its owner."""
FILE_MODE = 0o644
"""Of the new file."""


def main(arguments: list[str] | None = None) -> int:
    """Convert a dataset or weights; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m yolojob_trainer.convert", description=__doc__)
    commands = parser.add_subparsers(required=True)
    data = commands.add_parser("data")
    data.set_defaults(convert=_convert_data)
    data.add_argument("source", type=Path)
    data.add_argument("target", type=Path)
    data.add_argument("--task", type=Task, default=Task.DETECT)
    data.add_argument("--val", type=float, default=0.0)
    data.add_argument("--link", action="store_true")
    weights = commands.add_parser("weights")
    weights.set_defaults(convert=_convert_weights)
    weights.add_argument("source", type=Path)
    weights.add_argument("target", type=Path)
    options = parser.parse_args(arguments)
    environment.prepare()  # before the first import of Ultralytics

    from yolojob_trainer.errors import BadInput

    console = Console(stderr=True)
    try:
        lines = options.convert(options, console)
    except (BadInput, OSError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return ExitCode.BAD_INPUT
    for line in lines:
        print(line)  # noqa: T201
    return ExitCode.SUCCEEDED


def _convert_data(options: argparse.Namespace, console: Console) -> list[str]:
    """Convert into a folder beside the target, and rename it: a target that exists is complete.

    Raises:
        BadInput: the source is not valid.
        OSError: the target cannot be written.
    """
    from yolojob.api.reasons import Reason
    from yolojob_trainer.data.formats import conversion
    from yolojob_trainer.data.formats.annotation import ImageFinder
    from yolojob_trainer.errors import BadInput

    source, target = options.source.resolve(), options.target.resolve()
    if not source.is_dir():
        raise BadInput(Reason.DATASET_NOT_FOUND, f"{FIELD}: {options.source}: there is no such folder")
    if target.exists():
        raise BadInput(Reason.INVALID_DATASET, f"DST: {options.target}: exists; name a new folder")
    if target.is_relative_to(source):
        raise BadInput(Reason.INVALID_DATASET, f"DST: {options.target}: is inside of SRC, which stays as it is")
    if options.task not in conversion.TASKS:
        known = ", ".join(conversion.TASKS)
        raise BadInput(Reason.INVALID_DATASET, f"--task: {options.task}: annotations describe labels for {known} only")
    finder = ImageFinder(root=source, boundary=None, field=FIELD)
    with console.status("reading annotations"):
        annotations = conversion.find(finder, options.task)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    try:
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task("images", total=None)
            settings = conversion.ConversionSettings(
                task=options.task,
                place=conversion.link if options.link else conversion.copy,
                count=lambda done, total: progress.update(bar, completed=done, total=total),
                val=options.val,
            )
            result = conversion.write(annotations, partial, finder, settings)
        partial.chmod(FOLDER_MODE)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return [*result.summary(), f"{target / conversion.DATA_FILE}"]


def _convert_weights(options: argparse.Namespace, console: Console) -> list[str]:
    """Write a .safetensors file beside the target, read it back, and rename it: a target that exists is complete.

    Raises:
        BadInput: the source is not valid, or the file differs from it.
        OSError: the target cannot be written.
    """
    import torch

    from yolojob.api.reasons import Reason
    from yolojob.api.spec import SAFE_SUFFIX
    from yolojob_trainer.errors import BadInput
    from yolojob_trainer.model import network, weights_file

    source, target = options.source, options.target
    if not source.is_file():
        raise BadInput(Reason.WEIGHTS_NOT_FOUND, f"{FIELD}: {source}: there is no such file")
    if target.suffix != SAFE_SUFFIX:
        raise BadInput(Reason.INVALID_WEIGHTS, f"DST: {target}: the name must end with {SAFE_SUFFIX}")
    if target.exists():
        raise BadInput(Reason.INVALID_WEIGHTS, f"DST: {target}: exists; name a new file")
    with console.status("reading the weights"):
        weights = weights_file.read(source, FIELD)
    task = network.task_of(weights.yaml, FIELD)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
        partial = Path(folder) / target.name
        weights_file.write_safetensors(weights, partial)
        with console.status("comparing"):
            written, read = weights.float().state_dict(), weights_file.read(partial, "DST").state_dict()
        different = [name for name in written if not torch.equal(written[name].nan_to_num(), read[name].nan_to_num())]
        if different:
            raise BadInput(Reason.INVALID_WEIGHTS, f"{FIELD}: {source}: {different[0]} has no form in {SAFE_SUFFIX}")
        partial.chmod(FILE_MODE)
        target.touch(exist_ok=False)  # another file may have been made since the first look, or a link leads nowhere
        partial.rename(target)
    count = sum(parameter.numel() for parameter in weights.parameters())
    names = getattr(weights, "names", {})
    return [f"{task}: {count:,} parameters, {len(names)} classes", str(target)]


if __name__ == "__main__":
    sys.exit(main())
