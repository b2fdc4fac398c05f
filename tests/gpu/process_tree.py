"""Ends a process together with everything that it has started."""

from __future__ import annotations

import contextlib
import subprocess

import psutil

RELEASE_SECONDS = 10.0
"""Time for killed processes to release the GPU."""


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its descendants, and wait for their end."""
    processes: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        processes = [parent, *parent.children(recursive=True)]
    for member in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
    psutil.wait_procs(processes, RELEASE_SECONDS)
