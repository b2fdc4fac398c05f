"""Keeps a run from overwriting results that are not its own: of stock Ultralytics, or of a run that is still active."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from yolojob.api.reasons import Reason
from yolojob_trainer.data.object_store import ObjectStore
from yolojob_trainer.errors import BadInput

LOCK = ".yolojob.lock"
"""A file that rank 0 of an active run holds a lock on. The kernel, or the file server, releases it when the process
ends."""
LOCK_TIMEOUT_SECONDS = 60.0
"""Time for the previous attempt's process to end on a node that is being lost, and for a file server to notice."""
LOCK_POLL_SECONDS = 0.5
MARKER = ".yolojob"
"""A file that a run uploads first, to check that uploads are possible, and to claim the folder."""
CLAIM_SECONDS = 180.0
"""A claim of an object store that is older is given up; an active run renews it three times as often."""
CLAIM_POLL_SECONDS = 5.0
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


class BucketClaim:
    """The right to write a folder of an object store.

    A run writes its owner and the time into a marker, and renews it as long as it runs. Two runs that start within
    seconds of each other may both find the folder free: then the one whose marker is overwritten ends when it looks
    next, at most CLAIM_SECONDS / 3 later.
    """

    def __init__(self, store: ObjectStore, owner: str, clock: Callable[[], float] = time.time) -> None:
        """
        Args:
            store: the folder.
            owner: NAMESPACE/NAME of the job.
            clock: seconds since 1970.
        """
        self._store, self._owner, self._clock = store, owner, clock
        self._run = secrets.token_hex(8)
        self._renewed = 0.0
        self._lock = threading.Lock()
        self._released = False

    def acquire(self, on_wait: Callable[[str], None], sleep: Callable[[float], None] = time.sleep) -> None:
        """Claim the folder. While another job's claim is young, wait until it expires: that job may have been killed.

        Args:
            on_wait: called once with a message, if the claim has to wait.
            sleep: waits for some seconds.

        Raises:
            BadInput: another job renews its claim, or the folder cannot be written.
            Unavailable: the object store does not answer.
        """
        first = current = self._read()
        waits = 0
        while current.get("owner") != self._owner and self._is_young(current):
            if current["time"] != first["time"]:
                raise self._in_use(current)
            if not waits:
                on_wait(f"{self._store.shown} was in use by {current.get('owner')} until just now; waiting")
            waits += 1
            sleep(CLAIM_POLL_SECONDS)
            current = self._read()
        self._write(self._clock())

    def renew(self) -> None:
        """Renew the claim if it is old; called often.

        Raises:
            BadInput: another job, or another attempt of this one, has claimed the folder since.
            Unavailable: the object store does not answer.
        """
        if self._clock() - self._renewed < CLAIM_SECONDS / 3:
            return
        with self._lock:
            if self._released:
                return
            current = self._read()
            if current.get("run") != self._run and self._is_young(current):
                raise self._in_use(current)
            self._write(self._clock())

    def release(self) -> None:
        """Give the folder up, so that another job need not wait. Another thread may be renewing the claim."""
        with self._lock:
            self._released = True
            if self._read().get("run") == self._run:
                self._write(0.0)

    def _is_young(self, claim: dict[str, Any]) -> bool:
        return bool(claim) and self._clock() - claim["time"] < CLAIM_SECONDS

    def _read(self) -> dict[str, Any]:
        """The current claim; empty if there is none, or one of an older version."""
        try:
            claim = json.loads(self._store.read(MARKER, 0, None))
        except BadInput as error:
            if error.reason != Reason.STORAGE_NOT_FOUND:
                raise
            return {}
        except ValueError:
            return {}
        valid = isinstance(claim, dict) and isinstance(claim.get("time"), int | float)
        return claim if valid else {}

    def _write(self, moment: float) -> None:
        self._renewed = self._clock()
        claim = {"owner": self._owner, "run": self._run, "time": moment}
        self._store.write_bytes(json.dumps(claim).encode(), MARKER)

    def _in_use(self, claim: dict[str, Any]) -> BadInput:
        return BadInput(
            Reason.STORAGE_IN_USE,
            f"{self._store.shown} is in use by {claim.get('owner')}: choose another spec.storage.uri for this job",
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
