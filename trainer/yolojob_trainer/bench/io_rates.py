"""Measures the data path of a training: samples, image decoding, disk and object store. Each takes about a second."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import cv2

from yolojob.api.measurement import Rates
from yolojob.api.uri import Uri
from yolojob_trainer.data import official_datasets
from yolojob_trainer.data.dataset import TrainSamples
from yolojob_trainer.data.remote_store import open_store

T = TypeVar("T")
MEASURE_SECONDS = 1.0
DISK_BYTES = 64 << 20
STORE_BYTES = 32 << 20
MAX_STORE_SECONDS = 3.0


def measure(samples: TrainSamples, folder: Path | None, dataset_uri: Uri, *, is_main: bool) -> Rates:
    """Return the rates of one process. Every rank must call it.

    Args:
        samples: of the training.
        folder: on the disk to measure; only on rank 0.
        dataset_uri: URI of the dataset.
        is_main: whether this is rank 0, which alone measures the object store.
    """
    # In the order of an epoch, in which the images of mosaics are still in memory.
    numbers = samples.window.order.permutation(0).tolist()
    read, write = _disk_rates(folder) if folder else (None, None)
    return Rates(
        samples_per_core=_calls_per_second(samples.__getitem__, ((0, number) for number in numbers)),
        decoded_per_core=_calls_per_second(cv2.imread, iter(samples.dataset.im_files)),
        disk_read=read,
        disk_write=write,
        store_read=_store_rate(dataset_uri) if is_main else None,
    )


def _calls_per_second(function: Callable[[T], object], arguments: Iterator[T]) -> float | None:
    """Return how many times per second the function can be called; None without arguments."""
    began, count = time.perf_counter(), 0
    for argument in arguments:
        function(argument)
        count += 1
        if time.perf_counter() - began > MEASURE_SECONDS:
            break
    return count / (time.perf_counter() - began) if count else None


def _disk_rates(folder: Path) -> tuple[float, float] | tuple[None, None]:
    """Return (read, written) bytes per second, without the kernel's cache."""
    path = folder / ".bench"
    block = os.urandom(1 << 20)
    try:
        began = time.perf_counter()
        with path.open("wb") as file:
            for _ in range(DISK_BYTES // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        write_seconds = time.perf_counter() - began
        return DISK_BYTES / _read_seconds(path), DISK_BYTES / write_seconds
    except OSError:  # the disk is full: `RunFolder.check_space` reports that, not a bench
        return None, None
    finally:
        path.unlink(missing_ok=True)


def _read_seconds(path: Path) -> float:
    """Return the time to read a file after removing it from the kernel's cache."""
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        began = time.perf_counter()
        while file.read(1 << 20):
            pass
        return time.perf_counter() - began


def _store_rate(uri: Uri) -> float | None:
    """Return the bytes per second of one connection; None if the dataset is not in an object store."""
    uri = official_datasets.address(uri)
    if not uri.is_remote:
        return None
    store = open_store(uri, "spec.dataset.uri")
    largest = max(store.files(), key=lambda f: f.size or 0)
    began, count = time.perf_counter(), 0
    if store.scheme == "https":
        for block in store.stream(largest.path, 0)[1]:
            count += len(block)
            if count >= STORE_BYTES or time.perf_counter() - began > MAX_STORE_SECONDS:
                break
    else:
        count = len(store.read(largest.path, 0, min(STORE_BYTES, largest.size or 0)))
    return count / (time.perf_counter() - began) if count else None
