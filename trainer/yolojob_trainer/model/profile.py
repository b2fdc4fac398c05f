"""Counts the parameters and operations of a network, and the memory that its training needs."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from yolojob.api.measurement import ModelProfile

PROBE_IMAGES = 2
"""Images for the measurement of memory; batch norm needs more than one."""
_EMA_AND_GRADIENT_COPIES = 2
_MOMENTS = {"SGD": 1, "MuSGD": 1, "Adam": 2, "AdamW": 2, "Adamax": 2, "NAdam": 2, "RAdam": 2, "RMSProp": 2}
"""Tensors that an optimizer keeps for each parameter (the documentation of torch.optim)."""


def profile_model(
    model: torch.nn.Module, imgsz: int, dtype: torch.dtype, optimizer: torch.optim.Optimizer | None = None
) -> ModelProfile:
    """Profile a network by running it once on grey images.

    Args:
        model: on the device on which it will be trained.
        imgsz: side of the image in pixels.
        dtype: number format of the forward pass.
        optimizer: None assumes an optimizer that keeps two moments.
    """
    first = next(model.parameters())
    channels = int(getattr(model, "yaml", {}).get("channels", 3))
    image = torch.full((PROBE_IMAGES, channels, imgsz, imgsz), 0.5, device=first.device)
    training = model.training
    flops = _count_flops(model, image[:1])
    model.train()
    saved_bytes = _saved_bytes(model, image, dtype)
    model.train(training)
    parameters = sum(p.numel() for p in model.parameters())
    moments = _MOMENTS.get(type(optimizer).__name__, 2)
    copies = 1 + _EMA_AND_GRADIENT_COPIES + moments
    return ModelProfile(
        parameters=parameters,
        gflops=round(flops / 1e9, 4),
        activation_bytes=saved_bytes // PROBE_IMAGES,
        fixed_bytes=parameters * first.element_size() * copies,
    )


def _count_flops(model: torch.nn.Module, image: torch.Tensor) -> int:
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    return int(counter.get_total_flops())


def _saved_bytes(model: torch.nn.Module, image: torch.Tensor, dtype: torch.dtype) -> int:
    """Return the bytes that the forward pass saves for the backward pass, without parameters and buffers."""
    parameters = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    saved: dict[int, int] = {}
    """Address of the storage -> bytes, so that each storage counts once."""

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    buffers = {name: value.clone() for name, value in model.named_buffers()}
    with saved_tensors_hooks(pack, _identity), torch.autocast(image.device.type, dtype, enabled=dtype != torch.float32):
        out = model(image)
    del out
    for name, value in model.named_buffers():
        value.copy_(buffers[name])
    return sum(saved.values())


def _identity(tensor: Any) -> Any:
    return tensor
