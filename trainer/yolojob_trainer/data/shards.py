"""Datasets in shards: many .tar files, as WebDataset writes them, with images and labels side by side."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from yolojob.api.reasons import Reason
from yolojob_trainer.data import archive
from yolojob_trainer.errors import BadInput

NAME = re.compile(r"((?P<split>[^.].*?)[-_.])??[0-9]+(-of-[0-9]+)?(\.tar|\.tgz|\.tar\.(gz|bz2|xz))", re.IGNORECASE)
"""Such as train-000017.tar, train-00017-of-00128.tar, or 000017.tar in a folder train."""
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
    """Return the shards of a dataset; None for a dataset that is not in shards. Hidden files do not count.

    Args:
        root: the dataset.
        boundary: folder that links in it must not leave; None if they may lead anywhere.
        field: the field of the specification that names the dataset, for messages.

    Raises:
        BadInput: a file beside the shards cannot be read, or is a link that leads out of the volume.
    """
    found: dict[Path, Path] = {}
    companions: list[Path] = []
    unreadable: list[Path] = []
    for path in _files_below(root, set(), unreadable):
        if match := NAME.fullmatch(path.name):
            found[path] = path.parent.relative_to(root) / (match["split"] or "")
        elif path.suffix.lower() in COMPANIONS:
            companions.append(path)
        else:
            return None
    if not found:
        return None
    for path in (*unreadable, *found, *companions):
        if path in unreadable or not path.is_file():
            raise BadInput(Reason.INVALID_DATASET, f"{field}: {path}: cannot be read, or is a link that leads nowhere")
        if boundary and not path.resolve().is_relative_to(boundary):
            raise BadInput(
                Reason.INVALID_DATASET, f"{field}: {path}: is a link that leads out of the volume; copy the file"
            )
    return ShardedDataset(root=root, shards=dict(sorted(found.items())), companions=companions)


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
        archive.unpack(shard, target / folder, f"{field}: {shard}", space.check, exclusive=True)
        space.release()
        count(shard.stat().st_size)

    space = _Space(check_space)
    for path in dataset.companions:
        size = path.stat().st_size
        space.check(size, 1)
        if size > MAX_COPIED_BYTES:
            limit = f"at most {MAX_COPIED_BYTES >> 20} MiB beside shards"
            raise BadInput(Reason.INVALID_DATASET, f"{field}: {path}: has {size >> 20} MiB, {limit}")
        copy = target / path.relative_to(dataset.root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    space.release()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(unpack_one, dataset.shards, dataset.shards.values()))  # cancels the rest after an error


class _Space:
    """Checks the space on the disk for what all threads write at a time."""

    def __init__(self, check: archive.SpaceCheck) -> None:
        self._check = check
        self._lock = threading.Lock()
        self._planned: dict[int, int] = {}
        """Bytes of the file that each thread writes."""

    def check(self, size: int, files: int) -> None:
        """See `archive.SpaceCheck`."""
        with self._lock:
            self._planned[threading.get_ident()] = size
            self._check(sum(self._planned.values()), files)

    def release(self) -> None:
        """Tell that this thread has written its file."""
        with self._lock:
            self._planned.pop(threading.get_ident(), None)


def _files_below(folder: Path, seen: set[Path], unreadable: list[Path]) -> Iterator[Path]:
    """Yield the files of a dataset, one by one: one that is not in shards may have a million.

    Args:
        folder: whose files are yielded, with those of the folders in it.
        seen: folders that were visited, without links.
        unreadable: folders that cannot be read are added to it.
    """
    real = Path(os.path.realpath(folder))
    if real in seen:
        return
    seen.add(real)
    folders = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    continue
                path = Path(entry.path)
                if path.is_dir():  # unlike that of the entry, it raises nothing for a circle of links
                    folders.append(path)
                else:
                    yield path
    except OSError:
        unreadable.append(folder)
    for path in sorted(folders):
        yield from _files_below(path, seen, unreadable)
