"""Stores benches' results: one file for each job, place and number of workers."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field, ValidationError

from yolojob.api.base import ApiModel
from yolojob.api.errors import UserError
from yolojob.api.measurement import Amount, Measurement


class InvalidRecord(UserError):
    """A record file cannot be read; the message names the file."""


class RecordFolder:
    """A folder of records."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, record: Record) -> Path:
        """Write a record. It replaces an older one of the same job, place and number of workers."""
        self._folder.mkdir(parents=True, exist_ok=True)
        measured = record.measurement
        place = re.sub(r"[^A-Za-z0-9.-]+", "-", record.target)
        path = self._folder / f"{measured.fingerprint}-{place}-x{measured.workers}.json"
        path.write_text(record.model_dump_json(by_alias=True, exclude_none=True, indent=1) + "\n")
        return path

    def for_job(self, fingerprint: str) -> list[Record]:
        """All records of one job.

        Raises:
            InvalidRecord: a file is damaged, or was written by an incompatible version.
        """
        return [self._read(path) for path in sorted(self._folder.glob(f"{fingerprint}-*.json"))]

    @staticmethod
    def _read(path: Path) -> Record:
        try:
            return Record.model_validate_json(path.read_text())
        except (OSError, ValidationError) as error:
            raise InvalidRecord(f"{path} is not a measurement of this version; remove it: {error}") from None


def closest_record(records: list[Record], place: str, workers: int) -> Record | None:
    """The record of this place whose number of workers is closest."""
    candidates = [r for r in records if r.target == place]
    return min(candidates, key=lambda r: abs(r.measurement.workers - workers), default=None)


class Record(ApiModel):
    """A measurement and its place, as `yolojob bench` writes it into a file."""

    target: str
    """The place: `local`, or a context of the kubeconfig, with the GPU type after a colon."""
    waits: dict[str, Amount] = Field(default_factory=dict)
    """Seconds before the pods were running, by time part: queued, scheduling, image_pull."""
    per_worker_hour: Amount | None = None
    """Price of one worker for one hour; None if unknown."""
    currency: str | None = None
    """Currency of `per_worker_hour`."""
    price_source: str = ""
    """Where the price comes from, or what is missing."""
    measurement: Measurement
