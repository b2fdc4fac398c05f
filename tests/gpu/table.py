"""The rows that checks report, and the table of them."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

PREFIX = "ROWS "
"""Start of the line on which the process of a check reports its rows."""
NAME_WIDTH = 58


@dataclass(frozen=True)
class Row:
    """One result."""

    name: str
    value: str
    expected: str = ""
    """What was expected, or what the value is compared with."""
    passed: bool | None = None
    """None: the value is a figure, of which nothing is expected."""

    def __str__(self) -> str:
        mark = {True: "ok", False: "FAILED", None: ""}[self.passed]
        expected = f"   [{self.expected}]" if self.expected else ""
        return f"{mark:6} {self.name:<{NAME_WIDTH}} {self.value}{expected}"


def figure(name: str, value: Any, compared_with: str = "") -> Row:
    """Return a row without an expectation."""
    return Row(name, str(value), compared_with)


def verdict(name: str, value: Any, expected: str, passed: bool) -> Row:
    """Return a row that passes or fails."""
    return Row(name, str(value), expected, bool(passed))


def within(name: str, value: float, bounds: tuple[float, float]) -> Row:
    """Return a row that passes if the value is within the bounds."""
    low, high = bounds
    return verdict(name, f"{value:.3f}", f"{low} to {high}", low <= value <= high)


def failure(name: str, error: Exception) -> Row:
    """Return the row for a measurement that raised an error; print the traceback."""
    traceback.print_exception(error)
    return verdict(name, f"{type(error).__name__}: {error}"[:80], "no error", False)


def report(rows: Iterable[Row]) -> None:
    """Print the rows of a check for the process that runs it. A later call replaces the rows of an earlier one."""
    print(f"\n{PREFIX}{json.dumps([asdict(row) for row in rows])}", flush=True)


def parse(output: str) -> list[Row]:
    """Return the rows that a check has reported last."""
    for line in reversed(output.splitlines()):
        if line.startswith(PREFIX):
            with suppress(ValueError):  # the output of another process is within the line
                return [Row(**row) for row in json.loads(line.removeprefix(PREFIX))]
    return []


def summary(rows: list[Row]) -> str:
    """Return the failed rows below a line with their number."""
    failed = [row for row in rows if row.passed is False]
    passed = sum(row.passed is True for row in rows)
    return "\n".join([f"{passed} passed, {len(failed)} failed", *map(str, failed)])
