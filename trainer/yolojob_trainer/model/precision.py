"""Which number format the forward pass runs in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_NO_FAST_HALF = ("GTX 16",)
"""GPUs whose half precision is slower than single, and wrong in places (ultralytics/yolov5#7687)."""


def has_fast_bfloat16(cpu_flags: str) -> bool:
    """Whether a CPU multiplies bf16 in hardware; elsewhere it is emulated and slower (pytorch/pytorch#118499)."""
    return bool({"amx_bf16", "avx512_bf16"} & set(cpu_flags.split()))


def _cpu_flags() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")


def choose(asked: bool | str, device: torch.device) -> torch.dtype:
    """Number format for a device: what was asked for, or the fastest that keeps the result (`auto`).

    Raises:
        ValueError: the device cannot do what was asked for.
    """
    if asked is False:
        return torch.float32
    if device.type == "cpu":
        if asked == "fp16":
            raise ValueError("fp16 needs a GPU: use auto, bf16 or false")
        return torch.bfloat16 if asked == "bf16" or has_fast_bfloat16(_cpu_flags()) else torch.float32
    if asked == "bf16":
        return torch.bfloat16
    if asked == "fp16":
        return torch.float16
    if torch.cuda.get_device_capability(device) >= (8, 0):
        return torch.bfloat16
    return torch.float32 if any(n in torch.cuda.get_device_name(device) for n in _NO_FAST_HALF) else torch.float16


def supported(device: torch.device) -> list[str]:
    """Names of the number formats that a device computes with."""
    return [_NAMES[torch.float32], _NAMES[torch.bfloat16], *([_NAMES[torch.float16]] if device.type == "cuda" else [])]


def by_name(name: str) -> torch.dtype:
    return next(dtype for dtype, known in _NAMES.items() if known == name)


def name(dtype: torch.dtype) -> str:
    return _NAMES[dtype]


def float_predictions(value: Any) -> Any:
    """Predictions in single precision at least, in which losses are computed."""
    if isinstance(value, torch.Tensor):
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    if isinstance(value, dict):
        return {key: float_predictions(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(float_predictions(child) for child in value)
    return value
