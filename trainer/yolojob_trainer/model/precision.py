"""Chooses the number format of the forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_SLOW_HALF_PRECISION_GPUS = ("GTX 16",)
"""GPUs whose half precision is slower than single precision, and partly wrong (ultralytics/yolov5#7687)."""


def has_fast_bfloat16(cpu_flags: str) -> bool:
    """Return whether a CPU multiplies bf16 in hardware; emulation is slower (pytorch/pytorch#118499)."""
    return bool({"amx_bf16", "avx512_bf16"} & set(cpu_flags.split()))


def _cpu_flags() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")


def choose(requested: bool | str, device: torch.device) -> torch.dtype:
    """Return the requested number format, or for `auto` the fastest one that keeps the result.

    Raises:
        ValueError: the device does not support the requested format.
    """
    if requested is False:
        return torch.float32
    if device.type == "cpu":
        if requested == "fp16":
            raise ValueError("fp16 needs a GPU: use auto, bf16 or false")
        return torch.bfloat16 if requested == "bf16" or has_fast_bfloat16(_cpu_flags()) else torch.float32
    if requested == "bf16":
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            raise ValueError(f"{torch.cuda.get_device_name(device)} has no bf16: use auto, fp16 or false")
        return torch.bfloat16
    if requested == "fp16":
        return torch.float16
    if torch.cuda.get_device_capability(device) >= (8, 0):
        return torch.bfloat16
    slow = any(name in torch.cuda.get_device_name(device) for name in _SLOW_HALF_PRECISION_GPUS)
    return torch.float32 if slow else torch.float16


def supported(device: torch.device) -> list[str]:
    """Return the names of the number formats that a device supports."""
    if device.type == "cpu":
        return [_NAMES[torch.float32], _NAMES[torch.bfloat16]]
    bf16 = [_NAMES[torch.bfloat16]] if torch.cuda.is_bf16_supported(including_emulation=False) else []
    return [_NAMES[torch.float32], *bf16, _NAMES[torch.float16]]


def by_name(name: str) -> torch.dtype:
    return next(dtype for dtype, known in _NAMES.items() if known == name)


def name(dtype: torch.dtype) -> str:
    return _NAMES[dtype]


def float_predictions(value: Any) -> Any:
    """Return predictions in at least single precision, because losses are computed in it."""
    if isinstance(value, torch.Tensor):
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    if isinstance(value, dict):
        return {key: float_predictions(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(float_predictions(child) for child in value)
    return value
