"""A trainer process under conditions that one GPU otherwise cannot have. It reads these environment variables:

- GPU_CHECKS_BACKEND=gloo: gloo carries the tensors on the GPU, because NCCL refuses two ranks on one GPU.
- GPU_CHECKS_BACKEND=nccl: a single rank uses NCCL, DDP and the trainer's hooks as in a larger world.
- GPU_CHECKS_MEMORY=SHARE: torch may allocate only this share of the GPU's memory.
- GPU_CHECKS_DIVERGE=1: a weight becomes NaN in the third step of the second epoch.
- GPU_CHECKS_NORM=FILE: the norm of the first step's gradients is written to the file.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yolojob_trainer.__main__ as entry  # first, because it prepares the environment of Ultralytics

import torch  # isort: skip
import torch.distributed as dist  # isort: skip
from torch._C._distributed_c10d import GradBucket  # isort: skip
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks  # isort: skip
from ultralytics.utils.torch_utils import unwrap_model  # isort: skip
from yolojob_trainer.distributed.world import COLLECTIVE_TIMEOUT, World  # isort: skip
from yolojob_trainer.training import trainer as trainer_module  # isort: skip
from yolojob_trainer.training.trainer import Trainer  # isort: skip

NAN_POSITION = (1, 2)
"""(epoch, step) from 0."""


def use_gloo() -> None:
    """Make gloo carry CUDA tensors too."""
    initialise = dist.init_process_group

    def init_process_group(_backend: str, **options: Any) -> None:
        initialise("gloo", **options)

    def all_reduce(process_group: Any, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        """Reduce a bucket. The future of gloo does not wait for the copy back to the GPU, but `wait` does."""
        tensor = bucket.buffer()
        tensor.div_(dist.get_world_size())
        work = dist.all_reduce(tensor, group=process_group, async_op=True)
        assert work is not None
        work.wait()
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        future.set_result(tensor)
        return future

    dist.init_process_group = init_process_group  # type: ignore[assignment]
    default_hooks.allreduce_hook = all_reduce


def use_nccl_alone() -> None:
    """Open a process group of one rank, and wrap the network by DDP."""

    @contextmanager
    def connected(self: World) -> Iterator[None]:
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo",
            init_method=f"tcp://127.0.0.1:{os.environ['MASTER_PORT']}",
            rank=0,
            world_size=1,
            timeout=COLLECTIVE_TIMEOUT,
        )
        yield
        dist.destroy_process_group()

    class Wrapped(Trainer):
        def _build_train_pipeline(self) -> None:
            super()._build_train_pipeline()
            self._wrap()

    World.connected = connected  # type: ignore[method-assign]
    trainer_module.Trainer = Wrapped  # type: ignore[misc]


def diverge_once() -> None:
    class Diverging(Trainer):
        has_diverged = False

        def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
            position = (self.epoch, self.step)
            if self.optimizer is not None and position == NAN_POSITION and not self.has_diverged:
                self.has_diverged = True
                next(unwrap_model(self.model).parameters()).data[0] = float("nan")
            out: dict[str, Any] = super().preprocess_batch(batch)
            return out

    trainer_module.Trainer = Diverging  # type: ignore[misc]


def record_first_norm(path: Path) -> None:
    """Write the norm of the gradients before the first optimizer step, after their reduction among the ranks."""
    clip = torch.nn.utils.clip_grad_norm_

    def recorded(*args: Any, **options: Any) -> torch.Tensor:
        norm = clip(*args, **options)
        if not path.exists():
            path.write_text(str(float(norm)))
        return norm

    torch.nn.utils.clip_grad_norm_ = recorded


def main() -> int:
    backend = os.environ.get("GPU_CHECKS_BACKEND")
    if backend == "gloo":
        use_gloo()
    elif backend == "nccl":
        use_nccl_alone()
    if share := os.environ.get("GPU_CHECKS_MEMORY"):
        torch.cuda.set_per_process_memory_fraction(float(share))
    if os.environ.get("GPU_CHECKS_DIVERGE"):
        diverge_once()
    if file := os.environ.get("GPU_CHECKS_NORM"):
        record_first_norm(Path(file))
    return entry.main()


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)
