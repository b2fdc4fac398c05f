"""Measures how fast gradients are reduced among workers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Literal

import torch
import torch.distributed as dist

from yolojob.api.measurement import Link
from yolojob_trainer.bench.contention import ContentionProbe
from yolojob_trainer.distributed.world import World

LATENCY_REPEATS, TRANSFER_REPEATS, WARM_UP_REPEATS = 50, 8, 5
MAX_TRANSFER_BYTES = 64 << 20
"""DDP reduces larger gradients in buckets, one after the other."""


def measure(world: World, parameters: int) -> Link:
    """Measure among the ranks of this job. All ranks must call it.

    Args:
        world: with at least two ranks.
        parameters: number of the network's parameters.
    """
    device = world.device

    def reduce(elements: int, times: int) -> list[float]:
        tensor, seconds = torch.zeros(elements, device=device), []
        for _ in range(times):
            world.synchronize()
            began = time.perf_counter()
            dist.all_reduce(tensor)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
        return seconds

    return _measure_link(reduce, world.world_size, parameters, "workers")


def measure_between_processes(probe: ContentionProbe, parameters: int) -> Link:
    """Measure between two processes of this machine.

    Args:
        probe: the second process.
        parameters: number of the network's parameters.
    """
    return _measure_link(probe.reduce, 2, parameters, "processes")


def _measure_link(
    reduce: Callable[[int, int], list[float]],
    ranks: int,
    parameters: int,
    between: Literal["workers", "processes"],
) -> Link:
    reduce(1, WARM_UP_REPEATS)
    latency = statistics.median(reduce(1, LATENCY_REPEATS))
    size = min(4 * parameters, MAX_TRANSFER_BYTES)
    seconds = max(statistics.median(reduce(size // 4, TRANSFER_REPEATS)) - latency, 1e-9)
    return Link(
        between=between, latency_seconds=latency, bytes_per_second=round(2 * (ranks - 1) / ranks * size / seconds)
    )
