"""The files that benches leave: one for each job, place and number of workers."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field, ValidationError

from yolojob.api.base import ApiModel
from yolojob.api.errors import UserError
from yolojob.api.measurement import Amount, Measurement


class InvalidRecord(UserError):
    """A file is no record; the words name it."""


class Records:
    """A folder of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, record: Record) -> Path:
        """Keep a record; an older one of the same job, place and number of workers is replaced."""
        self._folder.mkdir(parents=True, exist_ok=True)
        measured = record.measurement
        place = re.sub(r"[^A-Za-z0-9.-]+", "-", record.target)
        path = self._folder / f"{measured.fingerprint}-{place}-x{measured.workers}.json"
        path.write_text(record.model_dump_json(by_alias=True, exclude_none=True, indent=1) + "\n")
        return path

    def for_job(self, fingerprint: str) -> list[Record]:
        """All of one job, in all places.

        Raises:
            InvalidRecord: a file is damaged, or of another version.
        """
        return [self._read(path) for path in sorted(self._folder.glob(f"{fingerprint}-*.json"))]

    @staticmethod
    def _read(path: Path) -> Record:
        try:
            return Record.model_validate_json(path.read_text())
        except (OSError, ValidationError) as error:
            raise InvalidRecord(f"{path} is no measurement of this version; remove it: {error}") from None


def best(records: list[Record], target: str, workers: int) -> Record | None:
    """The record of this place that is nearest to so many workers."""
    there = [r for r in records if r.target == target]
    return min(there, key=lambda r: abs(r.measurement.workers - workers), default=None)


class Record(ApiModel):
    """A measurement and where it was made: what `yolojob bench` writes into a file."""

    target: str
    """As it was asked for: local, or a kubeconfig's context."""
    waits: dict[str, Amount] = Field(default_factory=dict)
    """Seconds before the pods ran, by part: queued, scheduling, image pull."""
    per_worker_hour: Amount | None = None
    """Price of a worker there, and its currency, where there is one."""
    currency: str | None = None
    price_source: str = ""
    """Where it comes from, or what is missing."""
    measurement: Measurement
