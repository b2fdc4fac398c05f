"""CPUs, memory and start time of this process. Does not import torch, because the launcher uses it, too."""

from __future__ import annotations

import ctypes
import math
import os
import time
from pathlib import Path

from yolojob.api import constants

# (file with the quota, file with the period or None if the quota's file holds both), for cgroup v2 and v1.
_CPU_QUOTAS = (
    ("/sys/fs/cgroup/cpu.max", None),
    ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
)


def release_freed_memory() -> None:
    """Return freed memory to the kernel, which glibc otherwise keeps; does nothing with another C library."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def available_cpus() -> int:
    """Return the number of CPUs that this process may use.

    That is the smallest of its affinity, its cgroup's quota, which psutil does not read, and the CPUs that the operator
    has requested for it. `os.cpu_count()` counts the CPUs of the machine, which oversubscribes a limited pod.
    """
    count = len(os.sched_getaffinity(0))
    for quota_file, period_file in _CPU_QUOTAS:
        try:
            fields = Path(quota_file).read_text().split()
            quota = fields[0]
            period = fields[1] if period_file is None else Path(period_file).read_text()
            if quota not in ("max", "-1"):
                count = min(count, math.ceil(int(quota) / int(period)))
        except (OSError, ValueError, IndexError):
            continue
    requested = os.environ.get(constants.ENV_CPUS, "")
    if requested.isdigit():
        count = min(count, int(requested))
    return max(count, 1)


def process_start() -> float:
    """Return when this process started, in seconds since 1970, so that imports count.

    From field 22 of /proc/self/stat (proc(5)). psutil adds it to the boot time, which the kernel reports in whole
    seconds.
    """
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - age
