"""Runs the checks, each in its own process with a timeout, and prints a table: `tests/gpu/run.sh`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from gpu import scale as scales
from gpu.checks import Check, correctness, measurements
from gpu.process_tree import kill_tree
from gpu.table import Row, figure, parse, summary, verdict

AT_ONCE = {True: 16, False: 2}
"""Checks of correctness that run at the same time, on a GPU and on a CPU."""
POLL_SECONDS = 0.1
NO_TIME = "no time left"
LOG_CHARACTERS = 60_000
"""Of each check's log."""


class Process:
    """A check that runs."""

    def __init__(self, check: Check, logs: Path) -> None:
        self.check = check
        self._log = logs / check.file
        self._start = time.monotonic()
        self._killed = ""
        self._deadline = self._start + check.max_seconds * scales.scale().patience
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                check.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )

    def ended(self, deadline: float) -> bool:
        """Return whether it has ended; kill it at the timeout, or at the deadline of all checks."""
        now = time.monotonic()
        if self._process.poll() is None and now > min(deadline, self._deadline):
            self._killed = "timeout" if now > self._deadline else NO_TIME
            self.kill()
        return self._process.poll() is not None

    def kill(self) -> None:
        kill_tree(self._process)

    def rows(self) -> list[Row]:
        """Return its rows after its end."""
        text = self._log.read_text(errors="replace")
        rows = parse(text)
        seconds = f"{time.monotonic() - self._start:.0f} s"
        if self._killed == NO_TIME:
            rows.append(figure(self.check.name, f"not finished after {seconds}: {NO_TIME}"))
        elif code := self._process.returncode:
            lines = [line for line in text.splitlines() if line.strip()]
            end = self._killed or f"exit code {code}"
            rows.append(
                verdict(self.check.name, f"{end} after {seconds}: {lines[-1][:80] if lines else ''}", "0", False)
            )
        print(f"--- {self.check.name}: {seconds}", *rows, sep="\n", flush=True)  # known even if the rest is lost
        return rows


def run(checks: list[Check], at_once: int, deadline: float, logs: Path) -> list[Row]:
    """Run checks; return their rows. A check for which no time is left has a row that says so."""
    waiting, running, rows = list(checks), list[Process](), list[Row]()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                check = waiting.pop(0)
                if deadline - time.monotonic() < check.min_seconds:
                    rows.append(figure(check.name, f"not started: {NO_TIME}"))
                else:
                    running.append(Process(check, logs))
            for process in [process for process in running if process.ended(deadline)]:
                running.remove(process)
                rows += process.rows()
            time.sleep(POLL_SECONDS)
    finally:
        for process in running:
            process.kill()
    return rows


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests/gpu/run.sh", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("gpu-checks"), help="folder for the table and the log")
    parser.add_argument("--seconds", type=float, default=450.0, help="time for everything")
    parser.add_argument("--only", default="", metavar="NAMES", help="parts of the checks' names, separated by commas")
    parser.add_argument("--cpu", action="store_true", help="run tiny checks on the CPU, to test the checks themselves")
    parser.add_argument("--list", action="store_true", help="print the names of the checks, and exit")
    return parser.parse_args()


def main() -> int:
    start = time.monotonic()
    arguments = _arguments()
    os.environ[scales.ON_CPU] = str(int(arguments.cpu))
    size = scales.scale()
    groups = [(correctness(size), AT_ONCE[size.gpu]), (measurements(size), 1)]
    if arguments.list:
        print(*(check.name for checks, _ in groups for check in checks), sep="\n")
        return 0
    parts = [part for part in arguments.only.split(",") if part]
    unknown = [part for part in parts if not any(part in check.name for checks, _ in groups for check in checks)]
    if unknown:
        print(f"--only: {', '.join(unknown)}: no check has such a name; see --list", file=sys.stderr)
        return 2
    deadline = start + arguments.seconds
    from gpu.machine import machine  # it imports torch, which takes seconds

    rows = machine()
    print(*rows, sep="\n", flush=True)
    if any(row.passed is False for row in rows):
        print("torch finds no GPU: --cpu runs the checks without one", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="gpu-checks-") as folder:
        os.environ[scales.WORK_FOLDER] = folder
        logs = Path(folder) / "logs"
        logs.mkdir()
        try:
            rows += run([Check("dataset", "images", "", 90)], 1, deadline, logs)
            for checks, at_once in groups:
                chosen = [check for check in checks if not parts or any(part in check.name for part in parts)]
                rows += run(chosen, at_once, deadline, logs)
        finally:
            write(arguments.out, rows, logs)
    print(f"\n{summary(rows)}\n{time.monotonic() - start:.0f} s; table and log: {arguments.out}", flush=True)
    return 1 if any(row.passed is False for row in rows) else 0


def write(folder: Path, rows: list[Row], logs: Path) -> None:
    """Write table.txt, rows.json, and the ends of all logs as one file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.txt").write_text("\n".join([*map(str, rows), summary(rows)]) + "\n")
    (folder / "rows.json").write_text(json.dumps([asdict(row) for row in rows], indent=1))
    ends = (
        f"===== {path.name}\n{path.read_text(errors='replace')[-LOG_CHARACTERS:]}" for path in sorted(logs.iterdir())
    )
    (folder / "log.txt").write_text("\n".join(ends))


if __name__ == "__main__":
    sys.exit(main())
