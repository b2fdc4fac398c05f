"""How fast gradients are reduced among workers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Literal

import torch
import torch.distributed as dist

from yolojob.api.measurement import Link
from yolojob_trainer.bench.contention import Twin
from yolojob_trainer.distributed.world import World

LATENCIES, TRANSFERS = 50, 8
MOST_BYTES = 64 << 20
"""Larger gradients are reduced in buckets, one after the other."""


def measure(world: World, parameters: int) -> Link:
    """Among the ranks of this job. All must call it."""
    device = world.device

    def reduce(elements: int, times: int) -> list[float]:
        tensor, took = torch.zeros(elements, device=device), []
        for _ in range(times):
            world.barrier()
            began = time.perf_counter()
            dist.all_reduce(tensor)
            if device.type == "cuda":
                torch.cuda.synchronize()
            took.append(time.perf_counter() - began)
        return took

    return _link(reduce, world.world_size, parameters, "workers")


def between_processes(twin: Twin, parameters: int) -> Link:
    """Between two processes of this machine."""
    return _link(twin.reduce, 2, parameters, "processes")


def _link(
    reduce: Callable[[int, int], list[float]],
    ranks: int,
    parameters: int,
    between: Literal["workers", "processes"],
) -> Link:
    reduce(1, 5)
    latency = statistics.median(reduce(1, LATENCIES))
    count = min(4 * parameters, MOST_BYTES)
    seconds = max(statistics.median(reduce(count // 4, TRANSFERS)) - latency, 1e-9)
    return Link(
        between=between, latency_seconds=latency, bytes_per_second=round(2 * (ranks - 1) / ranks * count / seconds)
    )
