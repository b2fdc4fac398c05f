"""How many loader processes fit in shared memory, through which they pass their batches."""

from __future__ import annotations

import shutil
from pathlib import Path

FOLDER = Path("/dev/shm")  # noqa: S108 - torch's own
USABLE_SHARE = 0.8
"""Of the free shared memory; the rest is for NCCL and for labels."""


def loader_limit(batch: int, prefetch: int, free: int) -> int:
    """Return the number of loader processes whose batches fit. A batch that does not fit ends a loader with SIGBUS.

    Args:
        batch: bytes of the images of one microbatch.
        prefetch: microbatches that each process loads ahead.
        free: bytes of shared memory.
    """
    # Validation has twice the processes, twice the batch, and torch's default of two batches ahead.
    return int(USABLE_SHARE * free) // ((prefetch + 2 * 2 * 2) * batch)


def free_bytes() -> int:
    """Return the free shared memory of this worker."""
    return shutil.disk_usage(FOLDER).free
