"""Converts a dataset on this node, once, into its cache."""

from __future__ import annotations

import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from yolojob.api.reasons import Reason
from yolojob.api.task import Task
from yolojob.format import printable
from yolojob_trainer.data.formats import conversion
from yolojob_trainer.data.formats.annotation import ImageFinder
from yolojob_trainer.data.staging import Stage
from yolojob_trainer.errors import BadInput

LOGGED_PARTS = 10
"""Lines in the log about the progress of a conversion."""


def convert(root: Path, boundary: Path | None, task: Task, split: str, cache: Path) -> Path | None:
    """Return the folder with the converted dataset, whose links lead to images in the volume.

    Args:
        root: the dataset, without links.
        boundary: folder that links in it must not leave; None if they may lead anywhere.
        task: of the training.
        split: the split for validation.
        cache: cache folder of this node.

    Returns:
        None if the dataset has no files that may hold annotations.

    Raises:
        BadInput: the annotations are not valid, or in no known format.
    """
    if not conversion.annotation_files(root, task):
        return None
    finder = ImageFinder(root=root, boundary=boundary, field="spec.dataset")
    stage = Stage(cache / "datasets", lambda *_: None, finder.field)
    folder = stage.make(
        f"converted-{conversion.fingerprint(root, task)}-{split}",
        lambda target: _convert_in_process(finder, task, split, target),
    )
    _check_links(folder, finder)
    if os.environ.get("LOCAL_RANK", "0") == "0":  # once per node
        for line in (folder / conversion.SUMMARY).read_text(encoding="utf-8", errors="replace").splitlines():
            _log(printable(line))
    return folder


def _convert_in_process(finder: ImageFinder, task: Task, split: str, target: Path) -> None:
    """Convert a dataset in a process of its own.

    Reading a large JSON file holds Python's lock for longer than a heartbeat may wait, and takes several times its size
    of memory.

    Raises:
        BadInput: the annotations are not valid, or in no known format.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            problem = pool.submit(_convert, finder, task, split, target).result()
        except BrokenProcessPool:
            raise finder.error(
                f"{finder.root}: the process that converts the annotations was killed: they may need more memory than "
                "spec.workers.resources allows"
            ) from None
    if problem:
        raise BadInput(Reason.INVALID_DATASET, problem)


def _convert(finder: ImageFinder, task: Task, split: str, target: Path) -> str | None:
    """Convert a dataset; return what is wrong with it."""

    def count(done: int, total: int) -> None:
        if done * LOGGED_PARTS // total > (done - 1) * LOGGED_PARTS // total:
            _log(f"converted {done} of {total} images")

    try:
        annotations = conversion.find(finder, task)
        settings = conversion.ConversionSettings(task=task, place=conversion.link, count=count, needed=split)
        conversion.write(annotations, target, finder, settings)
    except BadInput as error:
        return str(error)
    return None


def _check_links(folder: Path, finder: ImageFinder) -> None:
    """Check the links of a converted dataset, in each use: the cache, and the volume, may have changed.

    Raises:
        BadInput: a link is not that of an image, or leads out of the volume.
    """
    for path in folder.rglob("*"):
        if not path.is_symlink():
            continue
        real = Path(os.path.realpath(path))  # which, unlike Path.resolve, raises nothing for a circle of links
        is_image = path.is_relative_to(folder / "images") and real.is_file()
        if not is_image or (finder.boundary and not real.is_relative_to(finder.boundary)):
            raise finder.error(f"{path}: leads to {real}, which is no image in the volume; copy the data into it")


def _log(line: str) -> None:
    print(f"yolojob: dataset: {line}", file=sys.stderr, flush=True)  # noqa: T201
