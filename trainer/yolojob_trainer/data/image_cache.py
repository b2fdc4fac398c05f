"""`cache: ram`: keeps decoded images in shared memory, once per node, for all ranks and loader processes."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

from yolojob_trainer.system.process import available_cpus

MEMORY = Path("/dev/shm")  # noqa: S108 - shared memory is the purpose
Image = NDArray[np.uint8]
Loaded = tuple[Image, tuple[int, int], tuple[int, int]]
"""(image, (height, width) of the file, (height, width) of the image), as Ultralytics' `load_image` returns it."""


class SharedImages:
    """All images of a dataset in one memory-mapped file that processes share."""

    def __init__(self, path: Path, index: NDArray[np.int64]) -> None:
        """
        Args:
            path: the images' bytes, one after the other.
            index: (N, 6): offset, height, width, channels, height and width of the file.
        """
        self._path = path
        self._index = index
        # A private mapping: an augmentation that works in place changes only pages of its own process.
        self._bytes: Image = np.memmap(path, np.uint8, mode="c")
        self.originals = [(int(h), int(w)) for h, w in index[:, 4:]]
        self.sizes = [(int(h), int(w)) for h, w in index[:, 1:3]]

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, i: int) -> Image:
        offset, height, width, channels = (int(v) for v in self._index[i][:4])
        return self._bytes[offset : offset + height * width * channels].reshape(height, width, channels)

    def unlink(self) -> None:
        """Remove the file names; the kernel frees the memory when the last process that maps it ends."""
        self._path.unlink(missing_ok=True)
        _index_path(self._path).unlink(missing_ok=True)


def share(key: str, count: int, load: Callable[[int], Loaded]) -> SharedImages:
    """Return the shared images; the first process decodes them.

    Args:
        key: identifies the images and their size.
        count: number of images.
        load: decodes the image with this index.

    Raises:
        OSError: the shared memory is full.
    """
    path = MEMORY / f"yolojob-{os.getuid()}-{hashlib.sha256(key.encode()).hexdigest()[:32]}"
    index = _index_path(path)
    with path.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (path.exists() and index.exists()):
            with ThreadPoolExecutor(available_cpus()) as pool:
                _write(path, index, pool.map(load, range(count)))
        shared = SharedImages(path, np.load(index))
        Path(lock.name).unlink(missing_ok=True)
    return shared


def why_not_fitting(needed: int) -> str | None:
    """Return why this number of bytes does not fit in shared memory; None if it fits."""
    memory, free = psutil.virtual_memory().available, shutil.disk_usage(MEMORY).free
    if needed < min(memory, free):
        return None
    return (
        f"cache: ram: {needed / 2**20:.0f} MiB of images do not fit ({memory / 2**20:.0f} MiB of memory are free, "
        f"{free / 2**20:.0f} MiB of {MEMORY}, see spec.workers.sharedMemory)"
    )


def _write(path: Path, index: Path, images: Iterable[Loaded]) -> None:
    suffix = f".{os.getpid()}.partial"
    partial, partial_index = path.with_suffix(suffix), index.with_suffix(f"{suffix}.npy")
    rows, offset = [], 0
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


def _index_path(path: Path) -> Path:
    return path.with_suffix(".npy")
