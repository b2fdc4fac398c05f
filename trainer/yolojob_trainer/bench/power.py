"""Measures the power of training with the energy counters of the hardware, if there are any."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import pynvml
import torch

from yolojob.api.measurement import Energy

RAPL = Path("/sys/class/powercap")
"""https://www.kernel.org/doc/html/latest/power/powercap/powercap.html; readable only by root since CVE-2020-8694."""


class PowerMeter:
    """Measures from its construction until `stop`."""

    def __init__(self, device: torch.device, gpus: int) -> None:
        """
        Args:
            device: of this process.
            gpus: number of the worker's GPUs, one for each of its processes.
        """
        self._device, self._gpus = device, gpus
        self._began, self._start = time.monotonic(), self._read_joules()

    def stop(self) -> Energy | None:
        """Return the mean power of this worker's GPUs, or of the CPU packages of its machine; None without counters."""
        end, seconds = self._read_joules(), time.monotonic() - self._began
        if self._start is None or end is None or seconds <= 0:
            return None
        (source, before), (_, after) = self._start, end
        watts = {name: (after[name] - before[name]) / seconds for name in before if name in after}
        if any(value < 0 for value in watts.values()):  # a counter has overflowed
            return None
        return Energy(watts=round(sum(watts.values()), 2), source=source)

    def _read_joules(self) -> tuple[Literal["nvml", "rapl"], dict[str, float]] | None:
        """Return (source, joules by the name of the counter)."""
        if self._device.type == "cuda":
            try:
                pynvml.nvmlInit()
                return "nvml", {f"gpu{index}": _gpu_joules(index) for index in range(self._gpus)}
            except pynvml.NVMLError:  # a GPU older than Volta, or a slice of a GPU
                return None
        packages: dict[str, float] = {}
        for folder in RAPL.glob("intel-rapl:[0-9]*"):
            if folder.name.count(":") == 1:  # a package, not a part of one
                try:
                    packages[folder.name] = int((folder / "energy_uj").read_text()) / 1e6
                except (OSError, ValueError):
                    continue
        return ("rapl", packages) if packages else None


def _gpu_joules(index: int) -> float:
    """Return the energy that a GPU has used since its driver was loaded.

    Raises:
        NVMLError: it has no counter.
    """
    handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(index).uuid}")
    return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
