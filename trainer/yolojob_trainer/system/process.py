"""What this process may use of its machine. No torch in here: the launcher asks, too."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

from yolojob.api import constants


def available_cpus() -> int:
    """CPUs that this process may use: the smallest of its affinity, its cgroup's quota and what it was promised.

    `os.cpu_count()` is the machine's, which oversubscribes a limited pod.
    """
    count = len(os.sched_getaffinity(0))
    quotas = (
        ("/sys/fs/cgroup/cpu.max", None),
        ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
    )
    for quota_file, period_file in quotas:
        try:
            words = Path(quota_file).read_text().split()
            quota = words[0]
            period = words[1] if period_file is None else Path(period_file).read_text()
            if quota not in ("max", "-1"):
                count = min(count, math.ceil(int(quota) / int(period)))
        except (OSError, ValueError, IndexError):
            continue
    promised = os.environ.get(constants.ENV_CPUS, "")
    if promised.isdigit():
        count = min(count, int(promised))
    return max(count, 1)


def process_start() -> float:
    """When this process began, seconds since 1970: imports count.

    From proc(5), field 22, because psutil adds it to a boot time that the kernel tells in whole seconds.
    """
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - age
