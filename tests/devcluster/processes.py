"""Long-running programs: each has a name, a pid file and a log."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from devcluster.settings import RUN


def call(*command: str, quiet: bool = False, check: bool = True, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    sink = subprocess.DEVNULL if quiet else None
    return subprocess.run(command, check=check, text=True, stdout=sink, stderr=sink, **options)  # type: ignore[call-overload,no-any-return]


def inside(netns: str, *command: str) -> list[str]:
    """The command line that runs a program in a network namespace.

    nsenter, because `ip netns exec` mounts a fresh /sys that hides the cgroups which kubelets need.
    """
    return ["nsenter", f"--net=/run/netns/{netns}", *command]


def launch(name: str, command: list[str], **environment: str) -> None:
    """Start a program that goes on after we are gone."""
    RUN.mkdir(parents=True, exist_ok=True)
    with (RUN / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, **environment},
        )
    (RUN / f"{name}.pid").write_text(str(process.pid))


def running(name: str) -> int | None:
    """The pid of a program of ours that lives."""
    try:
        pid = int((RUN / f"{name}.pid").read_text())
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, ValueError):
        return None
    return None if state == "Z" else pid


def end(name: str, how: signal.Signals = signal.SIGTERM, patience: float = 10) -> None:
    """End a program and its children; by force where it does not listen."""
    for number in (how, signal.SIGKILL):
        if (pid := running(name)) is None:
            break
        os.killpg(pid, number)
        deadline = time.monotonic() + patience
        while running(name) and time.monotonic() < deadline:
            time.sleep(0.05)
    (RUN / f"{name}.pid").unlink(missing_ok=True)


def wait_for(what: str, ready: Callable[[], bool], patience: float = 120) -> None:
    """Wait for a condition, or give up with words."""
    deadline = time.monotonic() + patience
    while not ready():
        if time.monotonic() > deadline:
            sys.exit(f"devcluster: {what}: not ready after {patience:.0f} s; the logs are in {RUN}")
        time.sleep(0.2)
