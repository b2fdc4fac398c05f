"""Converts a dataset by hand, for `yolojob convert data`: COCO JSON or Pascal VOC to Ultralytics' layout."""

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


def main(arguments: list[str] | None = None) -> int:
    """Convert a dataset; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m yolojob_trainer.convert", description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--task", type=Task, default=Task.DETECT)
    parser.add_argument("--val", type=float, default=0.0)
    parser.add_argument("--link", action="store_true")
    options = parser.parse_args(arguments)
    environment.prepare()  # before the first import of Ultralytics

    from yolojob_trainer.errors import BadInput

    console = Console(stderr=True)
    try:
        lines = _convert(options, console)
    except (BadInput, OSError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return ExitCode.BAD_INPUT
    for line in lines:
        print(line)  # noqa: T201
    return ExitCode.SUCCEEDED


def _convert(options: argparse.Namespace, console: Console) -> list[str]:
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


if __name__ == "__main__":
    sys.exit(main())
