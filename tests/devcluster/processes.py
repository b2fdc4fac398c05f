"""Starts and stops long-running programs, each with a name, a pid file and a log."""

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
    """Runs a program and waits until it has exited."""
    sink = subprocess.DEVNULL if quiet else None
    return subprocess.run(command, check=check, text=True, stdout=sink, stderr=sink, **options)  # type: ignore[call-overload,no-any-return]


def inside(netns: str, *command: str) -> list[str]:
    """Returns the command line that runs a program in a network namespace.

    It uses nsenter: `ip netns exec` mounts a new /sys, without the cgroups that kubelets need.
    """
    return ["nsenter", f"--net=/run/netns/{netns}", *command]


def launch(name: str, command: list[str], **environment: str) -> None:
    """Starts a program that keeps running after this process has exited."""
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
    """Returns the pid of a program started by `launch` that is still running."""
    try:
        pid = int((RUN / f"{name}.pid").read_text())
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, ValueError):
        return None
    return None if state == "Z" else pid


def end(name: str, how: signal.Signals = signal.SIGTERM, patience: float = 10) -> None:
    """Stops a program and its children; kills them after `patience` seconds."""
    for number in (how, signal.SIGKILL):
        if (pid := running(name)) is None:
            break
        os.killpg(pid, number)
        deadline = time.monotonic() + patience
        while running(name) and time.monotonic() < deadline:
            time.sleep(0.05)
    (RUN / f"{name}.pid").unlink(missing_ok=True)


def wait_for(what: str, ready: Callable[[], bool], patience: float = 120) -> None:
    """Waits for a condition; exits with a message after `patience` seconds."""
    deadline = time.monotonic() + patience
    while not ready():
        if time.monotonic() > deadline:
            sys.exit(f"devcluster: {what}: not ready after {patience:.0f} s; the logs are in {RUN}")
        time.sleep(0.2)
