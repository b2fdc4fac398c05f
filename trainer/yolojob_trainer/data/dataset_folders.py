"""Finds the folders of a dataset in which its data file or its annotations may be."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from yolojob_trainer.data.dataset_description import SEARCH_DEPTH


def folders_of(root: Path, *, follow_links: bool = False) -> Iterator[Path]:
    """Yield the dataset's folder and those below it in which its data file or annotations are searched.

    Args:
        root: the dataset.
        follow_links: whether links to folders count.
    """
    level = [root]
    yield root
    for _ in range(SEARCH_DEPTH):
        level = sorted(folder for parent in level for folder in _folders_in(parent, follow_links))
        yield from level


def _folders_in(parent: Path, follow_links: bool) -> list[Path]:
    """Return the folders in a folder. Looks at no file: a dataset on a network may have a million."""
    try:
        with os.scandir(parent) as entries:
            folders = [entry for entry in entries if entry.is_dir(follow_symlinks=follow_links)]
            return [Path(entry.path) for entry in folders if entry.name != "__MACOSX"]
    except OSError:
        return []
