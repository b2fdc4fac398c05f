"""Execution settings: what changes the speed of a training and not its result."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ExecutionSettings:
    """How a run is executed. Checkpoints hold these fields under "choice", so their names must not change."""

    amp: str
    """Number format of the forward pass: fp32, bf16 or fp16."""
    channels_last: bool
    micro_batches: int = 1
    """Number of microbatches into which each shard of the global batch is split."""
    cache: bool | str = False
    workers: int = 0
    """Loader processes of this rank."""
    prefetch: int = 4
    """Batches that each loader process loads ahead."""
    compile: bool = False

    def describe(self) -> dict[str, str]:
        """Return the settings as text, under the names of spec.train where that has them."""
        return {name: str(value).lower() for name, value in dataclasses.asdict(self).items()}
