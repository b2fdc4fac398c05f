"""Stores checkpoints: writes them atomically, and reads them as untrusted plain data."""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import torch

FORMAT = 2
PREFIX, SUFFIX = "checkpoint-", ".pt"
CheckpointContent = dict[str, Any]
"""Content of a checkpoint: tensors and plain values by name."""


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file so that at any time, also after a power cut, either the old or the new content is complete.

    Raises:
        OSError: it could not be written; the old file is unchanged, and no temporary file is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def decode(data: bytes) -> CheckpointContent:
    """Return the content of a checkpoint file: tensors and plain values, never code.

    Raises:
        ValueError: the bytes are not an intact checkpoint of this format.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if (broken := archive.testzip()) is not None:
                raise ValueError(f"its member {broken} is corrupt")
        checkpoint = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except ValueError:
        raise
    except Exception as error:  # noqa: BLE001 - an untrusted file may raise anything
        raise ValueError(str(error).partition("\n")[0]) from None
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != FORMAT:
        raise ValueError("it is not a checkpoint of this version")
    return checkpoint


class CheckpointStore:
    """The checkpoints of one run, in one folder."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, checkpoint: CheckpointContent, *, epoch: int, step: int) -> Path:
        """Add a checkpoint and delete the oldest ones beyond `keep`.

        Raises:
            OSError: it could not be written; the earlier checkpoints are unchanged.
        """
        path = self.folder / f"{PREFIX}{epoch:05d}-{step:07d}{SUFFIX}"
        write_atomically(path, lambda file: torch.save({"format": FORMAT, **checkpoint}, file))
        for old in self.paths()[self.keep :]:
            old.unlink(missing_ok=True)
        return path

    def paths(self) -> list[Path]:
        """Return all checkpoint files, newest first."""
        return sorted(self.folder.glob(f"{PREFIX}*{SUFFIX}"), reverse=True)

    def newest(
        self, elsewhere: Iterable[str] = (), fetch: Callable[[str], None] = lambda _: None
    ) -> tuple[bytes | None, list[str]]:
        """Find the newest intact checkpoint.

        Args:
            elsewhere: names of files that may be checkpoints and may be missing in this folder.
            fetch: downloads one of them into this folder.

        Returns:
            Its bytes, or None, and a message for each newer checkpoint that cannot be used.
        """
        pattern = re.compile(rf"{PREFIX}\d{{5,}}-\d{{7,}}{re.escape(SUFFIX)}")
        names = {path.name for path in self.paths()} | {name for name in elsewhere if pattern.fullmatch(name)}
        faults = []
        for name in sorted(names, reverse=True):
            try:
                fetch(name)
                data = (self.folder / name).read_bytes()
                decode(data)
            except (OSError, ValueError) as error:
                faults.append(f"{name} cannot be used ({error}); using the previous checkpoint")
                continue
            return data, faults
        return None, faults
