"""Datasets in shards: many .tar files, as WebDataset writes them, with images and labels side by side."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from yolojob.api.reasons import Reason
from yolojob_trainer.data import archive
from yolojob_trainer.data.dataset_folders import folders_of
from yolojob_trainer.errors import BadInput

NAME = re.compile(r"(?:(?P<split>.*?)[-_.]?)?(?P<number>\d+)\.tar(?:\.gz)?")
"""Such as train-000017.tar, or 000017.tar in a folder train."""
COMPANIONS = (".yaml", ".yml", ".txt", ".json", ".csv", ".md", "")
"""Suffixes of the files that may be beside shards. A dataset with other files is used as it is."""
MAX_COPIED_BYTES = 64 << 20
"""Of a file that is beside shards."""


@dataclass(frozen=True, kw_only=True)
class ShardedDataset:
    """The files of a dataset in shards."""

    root: Path
    shards: dict[Path, Path]
    """Folders in the unpacked dataset, relative, by the paths of the shards."""
    companions: list[Path]
    """Files beside the shards, such as data.yaml."""

    @property
    def size(self) -> int:
        """Bytes of all shards."""
        return sum(shard.stat().st_size for shard in self.shards)

    def identity(self) -> list[tuple[str, int, str]]:
        """Return (path, size, time of the last change) of each file."""
        files = [*self.shards, *self.companions]
        states = [(str(path.relative_to(self.root)), path.stat()) for path in sorted(files)]
        return [(path, state.st_size, str(state.st_mtime_ns)) for path, state in states]


def find(root: Path, boundary: Path | None, field: str) -> ShardedDataset | None:
    """Return the shards of a dataset; None if it is in no shards.

    Args:
        root: the dataset.
        boundary: folder that links in it must not leave; None if they may lead anywhere.
        field: the field of the specification that names the dataset, for messages.

    Raises:
        BadInput: a file is a link that leads out of the volume.
    """
    shards: dict[Path, Path] = {}
    companions: list[Path] = []
    for folder in folders_of(root):
        for path in _files_in(folder):
            if match := NAME.fullmatch(path.name):
                shards[path] = folder.relative_to(root) / (match["split"] or "")
            elif path.suffix.lower() in COMPANIONS or path.name.startswith("."):
                companions.append(path)
            else:
                return None
    if not shards:
        return None
    for path in (*shards, *companions):
        if boundary and not path.resolve().is_relative_to(boundary):
            raise BadInput(
                Reason.INVALID_DATASET,
                f"{field}: {path}: is a link that leads out of the volume; copy it",
            )
    return ShardedDataset(root=root, shards=dict(sorted(shards.items())), companions=companions)


def unpack(
    dataset: ShardedDataset, target: Path, field: str, check_space: archive.SpaceCheck, count: Callable[[int], None]
) -> None:
    """Unpack the shards, several at a time, and copy the files beside them.

    Args:
        dataset: the shards.
        target: an empty folder.
        field: see `find`.
        check_space: see `archive.SpaceCheck`.
        count: called with the bytes of each shard that is unpacked, from several threads.

    Raises:
        BadInput: a shard is damaged, holds what must not be unpacked, or a file that another one of its split has.
    """

    def unpack_one(shard: Path, folder: Path) -> None:
        (target / folder).mkdir(parents=True, exist_ok=True)
        archive.unpack(shard, target / folder, f"{field}: {shard}", check_space, exclusive=True)
        count(shard.stat().st_size)

    for path in dataset.companions:
        size = path.stat().st_size
        if size > MAX_COPIED_BYTES:
            limit = f"at most {MAX_COPIED_BYTES >> 20} MiB beside shards"
            raise BadInput(Reason.INVALID_DATASET, f"{field}: {path}: has {size >> 20} MiB, {limit}")
        copy = target / path.relative_to(dataset.root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        tasks = [pool.submit(unpack_one, shard, folder) for shard, folder in dataset.shards.items()]
        try:
            for task in tasks:
                task.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _files_in(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder, one by one: a dataset that is not in shards may have a million."""
    try:
        with os.scandir(folder) as entries:
            yield from (Path(entry.path) for entry in entries if entry.is_file())
    except OSError:
        return
