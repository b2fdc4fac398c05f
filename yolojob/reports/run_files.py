"""A run's own record in its folder: results.csv, the traces of all ranks, tuning. Read-only; whatever is damaged is named."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

from yolojob.api.errors import UserError
from yolojob.api.time_parts import TimePart, known_part


class NoRun(UserError):
    """There is no run; the words say what is missing."""


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One row of results.csv."""

    epoch: int
    """The first is 1."""
    seconds: float
    """Of training and validation, since the beginning."""
    loss: float | None
    map50: float | None
    map: float | None


@dataclass(frozen=True, kw_only=True)
class TraceLine:
    """One line of a trace: a step, or what lay between two steps."""

    rank: int
    epoch: int
    """The first is 0."""
    step: int
    start: float
    """Seconds since 1970."""
    images: int
    """Of the whole job; 0 between steps."""
    seconds: dict[TimePart, float]
    """By phase."""

    @property
    def end(self) -> float:
        return self.start + sum(self.seconds.values())


def epochs(folder: Path) -> list[Epoch]:
    """results.csv, an entry for each epoch.

    Raises:
        NoRun: there is none, or it is damaged.
    """
    path = folder / "results.csv"
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
        return [_epoch(row) for row in rows]
    except OSError:
        raise NoRun(f"{folder} is no run that has trained an epoch: there is no {path.name}") from None
    except (KeyError, ValueError, UnicodeDecodeError) as error:
        raise NoRun(f"{path} is damaged: {error}") from None


def _epoch(row: dict[str, str]) -> Epoch:
    def number(name: str) -> float | None:
        return float(row[name]) if row.get(name) else None

    losses = [float(value) for name, value in row.items() if name.startswith("train/") and value]
    return Epoch(
        epoch=int(float(row["epoch"])),
        seconds=float(row["time"]),
        loss=sum(losses) if losses else None,
        map50=number("metrics/mAP50(B)"),
        map=number("metrics/mAP50-95(B)"),
    )


def _by_part(seconds: dict[str, float]) -> dict[TimePart, float]:
    found: dict[TimePart, float] = {}
    for name, value in seconds.items():
        found[known_part(name)] = found.get(known_part(name), 0.0) + float(value)
    return found


def traces(folder: Path) -> list[TraceLine]:
    """All lines of all ranks, in the order of time.

    Raises:
        NoRun: there is no trace, or it is damaged.
    """
    lines = []
    for path in sorted((folder / "trace").glob("rank-*/epoch-*.jsonl")):
        rank = int(path.parent.name.removeprefix("rank-"))
        # A run that was killed while it wrote leaves half a line at the end.
        for number, text in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], 1):
            try:
                found = json.loads(text)
                lines.append(
                    TraceLine(
                        rank=rank,
                        epoch=int(found["epoch"]),
                        step=int(found["step"]),
                        start=float(found["start"]),
                        images=int(found.get("images", 0)),
                        seconds=_by_part(found["seconds"]),
                    )
                )
            except (ValueError, KeyError, TypeError, AttributeError):
                raise NoRun(f"{path}:{number} is no line of a trace") from None
    if not lines:
        raise NoRun(f"{folder} has no trace")
    return sorted(lines, key=lambda line: line.start)
