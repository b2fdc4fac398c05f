"""Runs the same computation in a second process, to measure the contention between two workers on one machine."""

from __future__ import annotations

import multiprocessing.connection
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore
from torch.multiprocessing import get_context

from yolojob_trainer.model import precision

TIMEOUT = timedelta(seconds=120)
"""The second process first imports torch, which takes seconds on a busy machine."""
REDUCE, HOLD_LOAD, STOP_LOAD = "reduce", "hold_load", "stop_load"


@dataclass(frozen=True, kw_only=True)
class _Load:
    """What the second process computes."""

    network: Any
    batch: dict[str, Any]
    precision_name: str
    threads: int


class ContentionProbe:
    """A second process on this machine; it runs inside the `with` block."""

    def __init__(self, network: torch.nn.Module, batch: dict[str, Any], dtype: torch.dtype) -> None:
        """
        Args:
            network: on the CPU, not wrapped.
            batch: the second process computes forward and backward passes of it.
            dtype: number format of the forward pass.
        """
        network = deepcopy(network)
        network.criterion = None  # type: ignore[assignment]
        self._load = _Load(
            network=network,
            batch=batch,
            precision_name=precision.name(dtype),
            threads=max(torch.get_num_threads() // 2, 1),
        )

    def __enter__(self) -> ContentionProbe:
        self._folder = tempfile.TemporaryDirectory(prefix="yolojob-")
        store = str(Path(self._folder.name) / "store")
        context = get_context("spawn")
        self._pipe, child_pipe = context.Pipe()
        self._process = context.Process(target=_worker_main, args=(child_pipe, store, self._load), daemon=True)
        self._process.start()
        self._group = _group(store, 0)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._folder.cleanup()

    def reduce(self, elements: int, times: int) -> list[float]:
        """Return the seconds of each of `times` reductions of an fp32 tensor between the two processes."""
        self._pipe.send((REDUCE, elements, times))
        return _reduce(self._group, elements, times)

    @contextmanager
    def hold_load(self) -> Iterator[None]:
        """Keep the second process computing during the block."""
        self._pipe.send((HOLD_LOAD, 0, 0))
        answer = self._pipe.recv()  # sent after the first pass
        assert answer == HOLD_LOAD
        yield
        self._pipe.send((STOP_LOAD, 0, 0))


OBJECT_LABELS = ("batch_idx", "cls", "bboxes", "keypoints")
"""Entries of a batch with a row for each object."""


def first_images(batch: dict[str, Any], count: int) -> dict[str, Any]:
    """Return the first images of a batch, with their labels: of images, of pixels, or of objects."""
    images = len(batch["img"])
    per_object = [name for name in OBJECT_LABELS if "batch_idx" in batch and name in batch]
    if "masks" in batch and len(batch["masks"]) != images:  # with overlap_mask: false, a mask for each object
        per_object.append("masks")
    tensors = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
    return {
        name: value[batch["batch_idx"] < count] if name in per_object else value[:count].contiguous()
        for name, value in tensors.items()
    }


def _group(store: str, rank: int) -> Any:
    return dist.ProcessGroupGloo(FileStore(store, 2), rank, 2, TIMEOUT)


def _reduce(group: Any, elements: int, times: int) -> list[float]:
    tensor, seconds = torch.zeros(elements), []
    for _ in range(times):
        group.barrier().wait()
        began = time.perf_counter()
        group.allreduce([tensor]).wait()
        seconds.append(time.perf_counter() - began)
    return seconds


def _worker_main(pipe: multiprocessing.connection.Connection, store: str, load: _Load) -> None:
    """Main function of the second process: executes the commands from the pipe until it is killed."""
    torch.set_num_threads(load.threads)
    group, dtype = _group(store, 1), precision.by_name(load.precision_name)
    network, batch = load.network, load.batch

    def compute() -> None:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            predictions = network(batch["img"])
        loss, _ = network.loss(batch, precision.float_predictions(predictions))
        loss.sum().backward()
        network.zero_grad()

    while True:
        command, elements, times = pipe.recv()
        if command == REDUCE:
            _reduce(group, elements, times)
        elif command == HOLD_LOAD:
            compute()
            pipe.send(HOLD_LOAD)
            while not pipe.poll():
                compute()
