"""`cache: ram`: decoded images in shared memory, once per node, whatever the number of ranks and loader processes."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yolojob_trainer.system.process import available_cpus

MEMORY = Path("/dev/shm")  # noqa: S108 - it is the point
Image = NDArray[np.uint8]
Loaded = tuple[Image, tuple[int, int], tuple[int, int]]
"""(image, (height, width) of the file, (height, width) as it is), as Ultralytics' `load_image` gives it."""


class SharedImages:
    """All images of a data set in one piece of memory that processes share."""

    def __init__(self, path: Path, index: NDArray[np.int64]) -> None:
        """
        Args:
            path: the images' bytes, one after the other.
            index: (N, 6): offset, height, width, channels, height and width of the file.
        """
        self._path = path
        self._index = index
        # Private: an augmentation that works in place changes its own process' pages, and no other's.
        self._bytes: Image = np.memmap(path, np.uint8, mode="c")
        self.originals = [(int(h), int(w)) for h, w in index[:, 4:]]
        self.sizes = [(int(h), int(w)) for h, w in index[:, 1:3]]

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, i: int) -> Image:
        offset, height, width, channels = (int(v) for v in self._index[i][:4])
        return self._bytes[offset : offset + height * width * channels].reshape(height, width, channels)

    def unlink(self) -> None:
        """Take its name away: the memory is freed when the last process that has it ends, however it ends."""
        self._path.unlink(missing_ok=True)
        _index_of(self._path).unlink(missing_ok=True)


def share(key: str, count: int, load: Callable[[int], Loaded]) -> SharedImages:
    """The images, decoded by whoever comes first.

    Args:
        key: says which images, and in which size.
        count: how many.
        load: decodes one.

    Raises:
        OSError: the shared memory is full.
    """
    path = MEMORY / f"yolojob-{os.getuid()}-{hashlib.sha256(key.encode()).hexdigest()[:32]}"
    index = _index_of(path)
    with path.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (path.exists() and index.exists()):
            with ThreadPoolExecutor(available_cpus()) as pool:
                _write(path, index, pool.map(load, range(count)))
        shared = SharedImages(path, np.load(index))
        Path(lock.name).unlink(missing_ok=True)
    return shared


def fits(needed: int) -> str | None:
    """Why so many bytes cannot be shared; none where they can."""
    import psutil

    memory, free = psutil.virtual_memory().available, shutil.disk_usage(MEMORY).free
    if needed < min(memory, free):
        return None
    return (
        f"cache: ram: {needed / 2**20:.0f} MiB of images are more than there is ({memory / 2**20:.0f} MiB of memory, "
        f"{free / 2**20:.0f} MiB of {MEMORY}, see spec.workers.sharedMemory): they are decoded again and again"
    )


def _write(path: Path, index: Path, images: Iterable[Loaded]) -> None:
    own = f".{os.getpid()}.partial"
    partial, partial_index, rows, offset = path.with_suffix(own), index.with_suffix(f"{own}.npy"), [], 0
    try:
        with partial.open("wb") as file:
            for image, original, _ in images:
                height, width, channels = image.shape
                file.write(np.ascontiguousarray(image).data)
                rows.append((offset, height, width, channels, *original))
                offset += image.nbytes
        np.save(partial_index, np.array(rows, dtype=np.int64), allow_pickle=False)
        partial_index.rename(index)
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
        partial_index.unlink(missing_ok=True)


def _index_of(path: Path) -> Path:
    return path.with_suffix(".npy")
