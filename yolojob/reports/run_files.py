"""Reads the files of a run's folder: results.csv and the traces of all ranks. Errors name the damaged file."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

from yolojob.api.errors import UserError
from yolojob.api.task import PREFIX, metrics_by_name, named_score
from yolojob.api.time_parts import TimePart, sum_trainer_parts


class NoRun(UserError):
    """The folder is not a readable run; the message says what is missing or damaged."""


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One row of results.csv."""

    epoch: int
    """The first is 1."""
    seconds: float
    """Training and validation time since the start of the run."""
    loss: float | None
    """Sum of the mean training losses."""
    metrics: dict[str, float]
    """Metrics of the validation by their names; empty without one."""

    @property
    def score(self) -> float | None:
        """The value of the main metric; None without a validation."""
        named = named_score(self.metrics)
        return named[1] if named else None


@dataclass(frozen=True, kw_only=True)
class TraceLine:
    """One line of a trace: a step, or the time between two steps."""

    rank: int
    epoch: int
    """The first is 0."""
    step: int
    start: float
    """Seconds since 1970."""
    images: int
    """Images of the whole job in this step; 0 between steps."""
    seconds: dict[TimePart, float]
    """Seconds by phase."""

    @property
    def end(self) -> float:
        return self.start + sum(self.seconds.values())


def epochs(folder: Path) -> list[Epoch]:
    """The epochs of results.csv.

    Raises:
        NoRun: results.csv is missing or damaged.
    """
    path = folder / "results.csv"
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
        return [_epoch(row) for row in rows]
    except OSError:
        raise NoRun(f"{folder}: {path.name} not found; not a run's folder, or no epoch has finished") from None
    except (KeyError, ValueError, UnicodeDecodeError) as error:
        raise NoRun(f"{path} is damaged: {error}") from None


def _epoch(row: dict[str, str]) -> Epoch:
    numbers = {name: float(value) for name, value in row.items() if name.startswith(PREFIX) and value}
    losses = [float(value) for name, value in row.items() if name.startswith("train/") and value]
    return Epoch(
        epoch=int(float(row["epoch"])),
        seconds=float(row["time"]),
        loss=sum(losses) if losses else None,
        metrics=metrics_by_name(numbers),
    )


def traces(folder: Path) -> list[TraceLine]:
    """All lines of all ranks, in order of time.

    Raises:
        NoRun: there is no trace, or it is damaged.
    """
    lines = []
    for path in sorted((folder / "trace").glob("rank-*/epoch-*.jsonl")):
        rank = int(path.parent.name.removeprefix("rank-"))
        # A run that was killed while writing leaves an incomplete last line.
        for number, text in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], 1):
            try:
                fields = json.loads(text)
                lines.append(
                    TraceLine(
                        rank=rank,
                        epoch=int(fields["epoch"]),
                        step=int(fields["step"]),
                        start=float(fields["start"]),
                        images=int(fields.get("images", 0)),
                        seconds=sum_trainer_parts(fields["seconds"]),
                    )
                )
            except (ValueError, KeyError, TypeError, AttributeError):
                raise NoRun(f"{path}:{number}: malformed trace line") from None
    if not lines:
        raise NoRun(f"{folder}: no trace found")
    return sorted(lines, key=lambda line: line.start)
