"""Keeps a run from overwriting results that are not its own: of stock Ultralytics, or of a run that is still active."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from yolojob.api.reasons import Reason
from yolojob_trainer.errors import BadInput

LOCK = ".yolojob.lock"
"""A file that rank 0 of an active run holds a lock on. The kernel, or the file server, releases it when the process
ends."""
LOCK_TIMEOUT_SECONDS = 60.0
"""Time for the previous attempt's process to end on a node that is being lost, and for a file server to notice."""
LOCK_POLL_SECONDS = 0.5
MARKER = ".yolojob"
"""A file that a run uploads first, to check that uploads are possible."""
_OWN = (LOCK, MARKER)
_CHECKPOINTS = "checkpoints/"


def foreign_results(names: Iterable[str]) -> list[str]:
    """Return results in a folder that no run of yolojob has written.

    Args:
        names: files below the folder, with / between folders.

    Returns:
        Files that a run would overwrite. Empty if the folder belongs to a run, even to one without a checkpoint.
    """
    names = list(names)
    if any(name in _OWN or name.startswith(_CHECKPOINTS) for name in names):
        return []
    return sorted(name for name in names if name == "results.csv" or (name[:8], name[-3:]) == ("weights/", ".pt"))


def check_no_foreign_results(names: Iterable[str], location: str) -> None:
    """Check that a folder holds no results of somebody else.

    Args:
        names: files below the folder.
        location: the folder, for the message.

    Raises:
        BadInput: it does; the message names them and the way out.
    """
    if found := foreign_results(names):
        raise BadInput(
            Reason.STORAGE_IN_USE,
            f"{location} holds results that yolojob has not written ({', '.join(found[:3])}); a run would overwrite "
            "them. Choose another spec.storage.uri. To start from those weights, set spec.model.weights.uri",
        )


class FolderLock:
    """The right to write a folder, until the process ends or `release` is called."""

    def __init__(self, folder: Path, owner: str, on_failure: Callable[[str], None]) -> None:
        """
        Args:
            folder: exists.
            owner: NAMESPACE/NAME of the job.
            on_failure: called with a message if the file system has no locks, or does not release one.

        Raises:
            BadInput: another job's run stays active there for LOCK_TIMEOUT_SECONDS.
        """
        self._file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._acquire(folder, owner, on_failure)
        except OSError as error:
            on_failure(f"another job that writes to {folder} would not be noticed: {error.strerror}")
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, owner.encode(), 0)

    def _acquire(self, folder: Path, owner: str, on_failure: Callable[[str], None]) -> None:
        deadline = time.monotonic() + LOCK_TIMEOUT_SECONDS
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(self._file, 1000, 0).decode(errors="replace")
                where = f"{folder} is in use by {holder or 'another run'}"
                if time.monotonic() <= deadline:
                    time.sleep(LOCK_POLL_SECONDS)
                    continue
                if holder == owner:
                    # A file server releases the lock of a node that lost its power only after minutes. The names of the
                    # pods already keep two attempts of a job apart.
                    on_failure(f"{where}, an earlier attempt of this job; its node is taken as lost")
                    return
                raise BadInput(
                    Reason.STORAGE_IN_USE, f"{where}: choose another spec.storage.uri for this job"
                ) from None
            else:
                return

    def release(self) -> None:
        """Give the folder up."""
        os.close(self._file)
