"""Another process of this machine that computes what we compute, to see how two workers of one machine get along."""

from __future__ import annotations

import multiprocessing.connection
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore
from torch.multiprocessing import get_context
from ultralytics.utils.torch_utils import unwrap_model

from yolojob_trainer.model import precision

if TYPE_CHECKING:
    from yolojob_trainer.training.trainer import Trainer

TIMEOUT = timedelta(seconds=120)
"""The twin imports torch first, which takes seconds on a busy machine."""
REDUCE, BUSY, REST = "reduce", "busy", "rest"


class Twin:
    """Lives from `with` to its end."""

    def __init__(self, trainer: Trainer, images: int) -> None:
        """
        Args:
            trainer: its network and precision, on a CPU.
            images: of the batch that the twin computes again and again.
        """
        model = deepcopy(unwrap_model(trainer.model))
        model.criterion = None
        batch = trainer.to_device(next(trainer.batches(trainer.epochs - 1, 0)))
        self._work = (model, _first(batch, images), precision.name(trainer.dtype), max(torch.get_num_threads() // 2, 1))

    def __enter__(self) -> Twin:
        self._folder = tempfile.TemporaryDirectory(prefix="yolojob-")
        store = str(Path(self._folder.name) / "store")
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_live, args=(theirs, store, *self._work), daemon=True)
        self._process.start()
        self._group = _group(store, 0)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._folder.cleanup()

    def reduce(self, elements: int, times: int) -> list[float]:
        """Seconds of each of so many reductions of an fp32 tensor between the two."""
        self._pipe.send((REDUCE, elements, times))
        return _reduce(self._group, elements, times)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """The twin computes meanwhile."""
        self._pipe.send((BUSY, 0, 0))
        assert self._pipe.recv() == BUSY, "the twin says when it is warm"
        yield
        self._pipe.send((REST, 0, 0))


def _first(batch: dict[str, Any], images: int) -> dict[str, Any]:
    """The first images of a batch, with their boxes."""
    own = batch["batch_idx"] < images
    boxes = {name: batch[name][own] for name in ("batch_idx", "cls", "bboxes")}
    return {"img": batch["img"][:images].contiguous(), **boxes}


def _group(store: str, rank: int) -> Any:
    return dist.ProcessGroupGloo(FileStore(store, 2), rank, 2, TIMEOUT)


def _reduce(group: Any, elements: int, times: int) -> list[float]:
    tensor, took = torch.zeros(elements), []
    for _ in range(times):
        group.barrier().wait()
        began = time.perf_counter()
        group.allreduce([tensor]).wait()
        took.append(time.perf_counter() - began)
    return took


def _live(
    pipe: multiprocessing.connection.Connection,
    store: str,
    model: torch.nn.Module,
    batch: dict[str, Any],
    dtype_name: str,
    threads: int,
) -> None:
    """The twin's life: what the pipe says, until it is killed."""
    torch.set_num_threads(threads)
    group, dtype = _group(store, 1), precision.by_name(dtype_name)

    def compute() -> None:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            predictions = model(batch["img"])
        loss, _ = model.loss(batch, precision.float_predictions(predictions))  # type: ignore[operator]
        loss.sum().backward()
        model.zero_grad()

    while True:
        what, elements, times = pipe.recv()
        if what == REDUCE:
            _reduce(group, elements, times)
        elif what == BUSY:
            compute()
            pipe.send(BUSY)
            while not pipe.poll():
                compute()
