"""The list of the checks: what runs at the same time, what runs alone, and in which order."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from gpu.scale import Scale

STOCK_LOADERS = 8
"""Ultralytics' default."""


@dataclass(frozen=True)
class Check:
    """One process."""

    name: str
    module: str
    """In this package."""
    function: str
    max_seconds: float
    """Timeout on a GPU."""
    min_seconds: float = 15.0
    """The check is not started with less time left."""
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def command(self) -> list[str]:
        options = [json.dumps(dict(self.options))] if self.options else []
        return [sys.executable, "-m", f"gpu.{self.module}", self.function, *options]

    @property
    def file(self) -> str:
        """Name of its log."""
        return f"{re.sub('[^A-Za-z0-9]+', '-', self.name)}.txt"


def correctness(scale: Scale) -> list[Check]:
    """Return checks that pass or fail however long they take: they run at the same time, and each is small."""
    formats = ("bf16", "fp16", False) if scale.gpu else (False,)
    return [
        Check("ranks", "trainings", "ranks", 170),
        Check("SIGKILL", "trainings", "resume", 170, options={"signal_name": "SIGKILL"}),
        Check("SIGTERM", "trainings", "resume", 170, options={"signal_name": "SIGTERM"}),
        Check("NaN", "trainings", "diverge", 150),
        Check("lost peer", "trainings", "lost_peer", 150),
        *(Check(f"learn {amp or 'fp32'}", "trainings", "learn", 150, options={"amp": amp}) for amp in formats),
        Check("learn cached", "trainings", "learn", 150, options={"cache": "gpu"}),
        Check("gradients", "kernels", "gradients", 120),
        Check("rendering", "kernels", "rendering", 120),
    ]


def measurements(scale: Scale) -> list[Check]:
    """Return checks that measure: they run one after the other, the most important ones first."""
    first, *others = scale.training_batches
    usual = STOCK_LOADERS if scale.gpu else 1
    # The rest of the memory is free: no other check runs at the same time.
    memory = Check("out of memory", "trainings", "out_of_memory", 90, 30, {"share": 0.12})
    return [
        Check("fixed batch, ours", "speed", "fixed_batch", 130, 30),
        Check("fixed batch, stock", "stock", "fixed_batch", 80, 25),
        _ours(first, "gpu", scale.loaders),
        *_pair(first, "ram", scale.loaders),
        *_pair(first, False, usual),
        memory,
        Check("loaders", "speed", "loaders", 90, 40),
        Check("bench", "trainings", "bench", 90, 40),
        Check("variants", "speed", "variants", 90, 30),
        Check("tuning", "trainings", "tune", 100, 60),
        *([Check("compiled", "speed", "compiled", 160, 60)] if scale.gpu else []),
        *(
            check
            for batch in others
            for check in (_ours(batch, "gpu", scale.loaders), *_pair(batch, "ram", scale.loaders))
        ),
    ]


def _ours(batch: int, cache: Any, workers: int) -> Check:
    options = {"batch": batch, "cache": cache, "workers": workers}
    return Check(f"training, ours b{batch} cache {cache}", "trainings", "speed", 75, 25, options)


def _pair(batch: int, cache: Any, workers: int) -> list[Check]:
    options = {"batch": batch, "cache": cache, "workers": workers}
    stock = Check(f"training, stock b{batch} cache {cache}", "stock", "speed", 75, 25, options)
    return [_ours(batch, cache, workers), stock]
