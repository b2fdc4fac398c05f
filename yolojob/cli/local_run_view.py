"""Follows a local run on the terminal until it ends; Ctrl-C saves its state."""

from __future__ import annotations

import math
import time

import typer

from yolojob.api.constants import ExitCode
from yolojob.cli import live_view
from yolojob.client.local_run import LocalRun

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT."""
POLL_INTERVAL_SECONDS = 0.3


def follow_local_run(local: LocalRun, view: live_view.LiveView) -> tuple[int, bool]:
    """Show the run until it ends: (exit code, whether Ctrl-C ended it)."""
    interrupted = False
    seconds = local.job.spec.run_policy.active_deadline_seconds
    deadline = math.inf if seconds is None else time.monotonic() + seconds
    local.start()
    with view:
        while True:
            try:
                code = local.wait(POLL_INTERVAL_SECONDS)
                if code is not None:
                    return code, interrupted
                if time.monotonic() >= deadline:
                    deadline = math.inf
                    typer.echo(f"spec.runPolicy.activeDeadlineSeconds: {seconds} s have passed; saving…", err=True)
                    local.stop()
                if report := local.progress():
                    view.update(report)
            except KeyboardInterrupt:
                if interrupted:
                    local.kill()
                else:
                    interrupted = True
                    typer.echo("Saving… (Ctrl-C again discards the steps since the last checkpoint)", err=True)
                    local.stop()


def command_exit_code(code: int) -> ExitCode:
    """The command's exit code for a trainer's exit code that is not 0."""
    return ExitCode.BAD_INPUT if code == ExitCode.BAD_INPUT else ExitCode.FAILED
