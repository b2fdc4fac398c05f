"""Reads the memory and the utilization of the GPU; both are 0 without a GPU."""

from __future__ import annotations

import math

import pynvml
import torch


def memory_peak(device: torch.device) -> int:
    """Return the peak of the bytes that torch has allocated on the device."""
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else 0


def utilization(device: torch.device) -> float:
    """Return the share of the last second or less in which the device computed, by NVML; NaN if not available."""
    if device.type != "cuda":
        return 0.0
    try:
        return float(torch.cuda.utilization(device)) / 100
    except (RuntimeError, pynvml.NVMLError):  # not available on a slice of a GPU (MIG)
        return math.nan
