"""Per-step agreement of all ranks on stopping, saving and divergence, without waiting for the network.

Each rank contributes its flags before a step. The reduction runs in the background during the step, and its result is
read before the next one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from yolojob_trainer.distributed.world import COLLECTIVE_TIMEOUT, World


class Decision(NamedTuple):
    """Whether any rank asked for each of these."""

    stop: bool = False
    save: bool = False
    diverged: bool = False


class Consensus:
    """Combines the flags of all ranks with a logical OR, one step late.

    Every rank must call `exchange` exactly once per step. The result is the same on all ranks, so all act in the same
    step.
    """

    def __init__(self, world: World) -> None:
        # A separate group: these reductions never queue behind those of the gradients.
        self._group: Any = dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT) if world.world_size > 1 else None
        self._pending: tuple[torch.Tensor, dist.Work | None] | None = None

    def exchange(self, flags: Decision) -> Decision:
        """Start the reduction of this step's flags; return the result of the previous step's reduction."""
        previous = self.flush()
        tensor = torch.tensor(flags, dtype=torch.int32)
        work = None
        if self._group is not None:
            work = dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._pending = (tensor, work)
        return previous

    def flush(self) -> Decision:
        """Wait for the pending reduction and return its result; nothing is pending afterwards."""
        if self._pending is None:
            return Decision()
        tensor, work = self._pending
        self._pending = None
        if work is not None:
            work.wait()
        return Decision(*(bool(value) for value in tensor))
