"""Fits a microbatch into the memory of a GPU: splits it until it does, at the same global batch.

Only batch norm, which normalises each microbatch by itself, sees fewer images at a time.
"""

from __future__ import annotations

import gc
from dataclasses import replace

import torch
from ultralytics.utils.torch_utils import unwrap_model

from yolojob_trainer.training.execution import ExecutionSettings
from yolojob_trainer.training.setup import TrainerSetup


def halved(trainer: TrainerSetup) -> ExecutionSettings | None:
    """Return the execution settings with microbatches of half the size; None if a microbatch has one image."""
    ranks = range(trainer.world.world_size)
    largest = max(max(trainer.order.sizes(0, rank, trainer.world.world_size)) for rank in ranks)
    if largest <= 1:
        return None
    return replace(trainer.execution, micro_batches=2 * trainer.execution.micro_batches)


def fit(trainer: TrainerSetup) -> None:
    """Split microbatches until one step fits into the memory of every rank's GPU.

    Call it on all ranks, before the network is wrapped by DDP: a rank that runs out of memory inside a collective would
    keep the others waiting. It trains nothing.
    """
    buffers = {name: value.clone() for name, value in trainer.model.named_buffers()}
    while trainer.world.any(not _fits(trainer)):
        settings = halved(trainer)
        if settings is None:
            break  # the first step reports what is wrong
        use(trainer, settings)
    restore(trainer.model, buffers)


def restore(network: torch.nn.Module, buffers: dict[str, torch.Tensor]) -> None:
    """Undo what passes without an optimizer step leave in a network: batch norm statistics, and the criterion.

    Upstream sets the weights of classes (cls_pw) later, and a criterion reads them only when it is built.
    """
    unwrap_model(network).criterion = None  # first: its class weights are a buffer of the network
    for name, value in network.named_buffers():
        value.copy_(buffers[name])


def use(trainer: TrainerSetup, settings: ExecutionSettings) -> None:
    """Train with these settings from now on, which may differ from the current ones in the microbatches only."""
    _free()
    trainer.execution = settings
    trainer.reshard(settings.micro_batches)
    size = max(trainer.order.sizes(0, trainer.world.rank, trainer.world.world_size))
    if trainer.world.is_main:
        trainer.warn(
            f"out of GPU memory: the global batch of {trainer.order.batch} is now trained in microbatches of at most "
            f"{size} image(s) for each GPU"
        )


def _fits(trainer: TrainerSetup) -> bool:
    """Return whether this rank can run the first step of an epoch, forward and backward."""
    trainer.set_train_mode()
    batches = trainer.batches(0, 0)
    try:
        for _ in trainer.order.sizes(0, trainer.world.rank, trainer.world.world_size):
            loss, _ = trainer.forward(next(batches))
            loss.sum().backward()  # type: ignore[no-untyped-call]
    except torch.OutOfMemoryError:
        return False
    finally:
        for parameter in trainer.model.parameters():
            parameter.grad = None
    return True


def _free() -> None:
    """Give the memory of failed passes back. Their tensors may be in reference cycles."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
