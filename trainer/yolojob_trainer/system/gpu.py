"""Reads the memory and the utilization of the GPU; both are 0 without a GPU."""

from __future__ import annotations

import math
import time

import pynvml
import torch

UTILIZATION_INTERVAL_SECONDS = 2.0
"""Minimum time between two requests to NVML, which take up to milliseconds on the training's thread."""


def memory_peak(device: torch.device) -> int:
    """Return the peak of the bytes that torch has allocated on the device."""
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else 0


def reset_memory_peak(device: torch.device) -> None:
    """Let the peak start from what is allocated now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


class UtilizationReader:
    """Reads the utilization of a device, not too often."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._read_at = -math.inf
        self._value = 0.0

    def read(self) -> float:
        """Return the share of the last second or less in which the device computed, by NVML; NaN if not available.

        The value is at most UTILIZATION_INTERVAL_SECONDS old.
        """
        now = time.monotonic()
        if self._device.type == "cuda" and now - self._read_at >= UTILIZATION_INTERVAL_SECONDS:
            self._read_at = now
            try:
                self._value = float(torch.cuda.utilization(self._device)) / 100
            except (RuntimeError, pynvml.NVMLError):  # not available on a slice of a GPU (MIG)
                self._value = math.nan
        return self._value
