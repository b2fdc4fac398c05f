"""Describes the machine, and measures its free memory, for people and for predictions."""

from __future__ import annotations

import platform
from pathlib import Path

import psutil
import torch
import ultralytics

from yolojob.api.measurement import Host
from yolojob_trainer.system.process import available_cpus

# Files of cgroup v2 and v1; psutil does not read them.
_MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_MEMORY_STATISTICS = ("/sys/fs/cgroup/memory.stat", "/sys/fs/cgroup/memory/memory.stat")
_MEMORY_USAGES = ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes")


def describe(device: torch.device) -> Host:
    """Return a description of the machine and its software."""
    cuda = device.type == "cuda"
    return Host(
        cpu=_cpu_model(),
        cores=available_cpus(),
        memory=min(psutil.virtual_memory().total, _read_first_number(_MEMORY_LIMITS) or 1 << 62),
        gpu=torch.cuda.get_device_name(device) if cuda else None,
        gpus=torch.cuda.device_count() if cuda else 0,
        gpu_memory=torch.cuda.get_device_properties(device).total_memory if cuda else None,
        system=platform.platform(),
        python=platform.python_version(),
        torch=torch.__version__,
        ultralytics=ultralytics.__version__,
    )


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free for training on this device: of the GPU, or of the container or machine."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # blocks that torch keeps for later are free
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    limit, used = _read_first_number(_MEMORY_LIMITS), _read_first_number(_MEMORY_USAGES)
    if limit is None or used is None:
        return free
    return min(free, max(limit - used + _reclaimable(), 0))


def _reclaimable() -> int:
    """Return the bytes of files in memory that this container's limit counts, and that the kernel drops if needed."""
    for file in _MEMORY_STATISTICS:
        try:
            lines = Path(file).read_text().splitlines()
        except OSError:
            continue
        values = dict(line.split() for line in lines if len(line.split()) == 2)
        return int(values.get("total_inactive_file", values.get("inactive_file", 0)))
    return 0


def _read_first_number(files: tuple[str, ...]) -> int | None:
    """Return the content of the first of these files that exists; None without a file, or without a limit in it."""
    for file in files:
        try:
            text = Path(file).read_text().strip()
        except OSError:
            continue
        return int(text) if text.isdigit() else None
    return None


def _cpu_model() -> str:
    """Return the model name from /proc/cpuinfo, which psutil and `platform` do not read."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
