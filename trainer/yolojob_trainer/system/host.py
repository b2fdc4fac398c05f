"""The machine under this process, for people and for predictions."""

from __future__ import annotations

import platform
from pathlib import Path

import torch
import ultralytics

from yolojob.api.measurement import Host
from yolojob_trainer.system.process import available_cpus

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_USAGES = ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes")


def describe(device: torch.device) -> Host:
    """What trains here."""
    cuda = device.type == "cuda"
    return Host(
        cpu=_cpu(),
        cores=available_cpus(),
        memory=min(_memory("MemTotal"), _number(_LIMITS) or 1 << 62),
        gpu=torch.cuda.get_device_name(device) if cuda else None,
        gpus=torch.cuda.device_count() if cuda else 0,
        gpu_memory=torch.cuda.get_device_properties(device).total_memory if cuda else None,
        system=platform.platform(),
        python=platform.python_version(),
        torch=torch.__version__,
        ultralytics=ultralytics.__version__,
    )


def free_memory(device: torch.device) -> int:
    """Bytes that training may still take on this device: of the GPU, or of the container or the machine."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = _memory("MemAvailable")
    limit, used = _number(_LIMITS), _number(_USAGES)
    return free if limit is None or used is None else min(free, max(limit - used, 0))


def _memory(what: str) -> int:
    """Bytes, from proc(5), meminfo."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{what}:"))


def _number(files: tuple[str, ...]) -> int | None:
    """What the first of these files says; none where there is no limit."""
    for file in files:
        try:
            text = Path(file).read_text().strip()
        except OSError:
            continue
        return int(text) if text.isdigit() else None
    return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
