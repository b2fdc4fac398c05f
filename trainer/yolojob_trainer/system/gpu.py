"""What the GPU says of itself. Without one, nothing of it is used."""

from __future__ import annotations

import math

import pynvml
import torch


def memory_peak(device: torch.device) -> int:
    """Most bytes that torch has allocated on the device so far."""
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else 0


def utilization(device: torch.device) -> float:
    """Share of the last moment (NVML: up to a second) in which the device was computing; NaN where the driver does not say."""
    if device.type != "cuda":
        return 0.0
    try:
        return float(torch.cuda.utilization(device)) / 100
    except (RuntimeError, pynvml.NVMLError):  # a slice of a GPU (MIG) knows no such figure
        return math.nan
