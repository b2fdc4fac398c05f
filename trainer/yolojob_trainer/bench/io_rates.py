"""What feeds a training: how fast samples are made, images decoded, and disks and object stores read. A second each."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import cv2

from yolojob.api.measurement import Rates
from yolojob.api.uri import Uri
from yolojob_trainer.checkpoint.run_folder import Storage
from yolojob_trainer.data.object_store import Remote

if TYPE_CHECKING:
    from yolojob_trainer.training.trainer import Trainer

T = TypeVar("T")
SECONDS = 1.0
DISK_BYTES = 64 << 20
STORE_BYTES = 32 << 20


def rates(trainer: Trainer) -> Rates:
    """Rates of one process; those of disk and store on rank 0 alone. Every rank must call it."""
    read, write = _disk(trainer.storage) if trainer.storage else (None, None)
    return Rates(
        samples_per_core=_per_second(trainer.samples.__getitem__, ((0, i) for i in range(len(trainer.samples)))),
        decoded_per_core=_per_second(cv2.imread, iter(trainer.samples.dataset.im_files)),
        disk_read=read,
        disk_write=write,
        store_read=_store(trainer.run.spec.dataset.uri) if trainer.world.is_main else None,
    )


def _per_second(deed: Callable[[T], object], over: Iterator[T]) -> float | None:
    """How often per second; none where there is nothing to do it with."""
    began, count = time.perf_counter(), 0
    for each in over:
        deed(each)
        count += 1
        if time.perf_counter() - began > SECONDS:
            break
    return count / (time.perf_counter() - began) if count else None


def _disk(storage: Storage) -> tuple[float, float] | tuple[None, None]:
    """Bytes per second, read and written, past the kernel's cache."""
    path = storage.folder / ".bench"
    block = os.urandom(1 << 20)
    try:
        began = time.perf_counter()
        with path.open("wb") as file:
            for _ in range(DISK_BYTES // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        written = time.perf_counter() - began
        return DISK_BYTES / _read(path), DISK_BYTES / written
    except OSError:  # no room for it: what else does not fit is not for a bench to say
        return None, None
    finally:
        path.unlink(missing_ok=True)


def _read(path: Path) -> float:
    """Seconds for reading a file that the kernel has forgotten."""
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        began = time.perf_counter()
        while file.read(1 << 20):
            pass
        return time.perf_counter() - began


def _store(uri: Uri) -> float | None:
    """Bytes per second by one connection; none where the data set is in no store."""
    if not uri.is_remote:
        return None
    remote = Remote(str(uri), "spec.dataset.uri")
    largest = max(remote.files(), key=lambda f: f.size or 0)
    began, count = time.perf_counter(), 0
    if remote.scheme == "https":
        for block in remote.stream(0)[1]:
            count += len(block)
            if count >= STORE_BYTES or time.perf_counter() - began > 3 * SECONDS:
                break
    else:
        count = len(remote.read(largest.path, 0, min(STORE_BYTES, largest.size or 0)))
    return count / (time.perf_counter() - began) if count else None
