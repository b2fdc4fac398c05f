"""What this process may use of its machine. No torch in here: the launcher asks, too."""

from __future__ import annotations

import math
import os
from pathlib import Path

from yolojob import contract


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
    promised = os.environ.get(contract.ENV_CPUS, "")
    if promised.isdigit():
        count = min(count, int(promised))
    return max(count, 1)
