"""State that survives: written whole or not at all, read only as plain data, and never trusted unread."""

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
State = dict[str, Any]


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file so that at every moment, and after a power cut, the old or the new one is there, whole.

    Raises:
        OSError: it could not be written; what was there before is untouched, and nothing is left beside it.
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


def decode(data: bytes) -> State:
    """The state in a checkpoint's bytes: tensors and plain values, never code.

    Raises:
        ValueError: these bytes are no whole checkpoint of this format.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if (broken := archive.testzip()) is not None:
                raise ValueError(f"{broken} in it is corrupt")
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except ValueError:
        raise
    except Exception as error:  # noqa: BLE001 - any fault of an untrusted file means the same: do not use it
        raise ValueError(str(error).partition("\n")[0]) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError("it is not a checkpoint of this version")
    return state


class CheckpointStore:
    """The checkpoints of one run, in one folder."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, state: State, *, epoch: int, step: int) -> Path:
        """Add a checkpoint and drop the oldest beyond `keep`.

        Raises:
            OSError: it could not be written; those before it are untouched.
        """
        path = self.folder / f"{PREFIX}{epoch:05d}-{step:07d}{SUFFIX}"
        write_atomically(path, lambda file: torch.save({"format": FORMAT, **state}, file))
        for old in self.paths()[self.keep :]:
            old.unlink(missing_ok=True)
        return path

    def paths(self) -> list[Path]:
        """All checkpoints, newest first."""
        return sorted(self.folder.glob(f"{PREFIX}*{SUFFIX}"), reverse=True)

    def newest(
        self, elsewhere: Iterable[str] = (), fetch: Callable[[str], None] = lambda _: None
    ) -> tuple[bytes | None, list[str]]:
        """Bytes of the newest checkpoint that is whole, and what was wrong with newer ones.

        Args:
            elsewhere: names of files that may be checkpoints, and need not be in this folder.
            fetch: brings one of them here.
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
                faults.append(f"{name} cannot be used ({error}): trying the one before")
                continue
            return data, faults
        return None, faults
