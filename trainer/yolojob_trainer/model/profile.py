"""What a network is made of: parameters, operations, and the memory that training it takes."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from yolojob.api.measurement import ModelProfile

PROBE = 2
"""Images that memory is measured with; batch norm wants more than one."""
_EMA_AND_GRADIENT = 2
_MOMENTS = {"SGD": 1, "MuSGD": 1, "Adam": 2, "AdamW": 2, "Adamax": 2, "NAdam": 2, "RAdam": 2, "RMSProp": 2}
"""Tensors that an optimizer keeps for each parameter (the documentation of torch.optim)."""


def of(
    model: torch.nn.Module, imgsz: int, dtype: torch.dtype, optimizer: torch.optim.Optimizer | None = None
) -> ModelProfile:
    """Count, by running it once on grey images.

    Args:
        model: where it is to be trained.
        imgsz: side of the image in pixels.
        dtype: number format of the forward pass.
        optimizer: as far as it is known; else one that keeps two moments is assumed.
    """
    first = next(model.parameters())
    channels = int(getattr(model, "yaml", {}).get("channels", 3))
    image = torch.full((PROBE, channels, imgsz, imgsz), 0.5, device=first.device)
    training = model.training
    flops = _flops(model, image[:1])
    model.train()
    saved = _saved(model, image, dtype)
    model.train(training)
    parameters = sum(p.numel() for p in model.parameters())
    moments = _MOMENTS.get(type(optimizer).__name__, 2)
    copies = 1 + _EMA_AND_GRADIENT + moments
    return ModelProfile(
        parameters=parameters,
        gflops=round(flops / 1e9, 4),
        activation_bytes=saved // PROBE,
        fixed_bytes=parameters * first.element_size() * copies,
    )


def _flops(model: torch.nn.Module, image: torch.Tensor) -> int:
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    return int(counter.get_total_flops())


def _saved(model: torch.nn.Module, image: torch.Tensor, dtype: torch.dtype) -> int:
    """Bytes that the forward pass keeps, each piece of memory once, without the parameters themselves."""
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    buffers = {name: value.clone() for name, value in model.named_buffers()}
    with saved_tensors_hooks(pack, _same), torch.autocast(image.device.type, dtype, enabled=dtype != torch.float32):
        out = model(image)
    del out
    for name, value in model.named_buffers():
        value.copy_(buffers[name])
    return sum(kept.values())


def _same(tensor: Any) -> Any:
    return tensor
