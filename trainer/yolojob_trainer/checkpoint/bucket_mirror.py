"""Mirrors the folder of a run to an object store: uploads in the background, and downloads on a resume elsewhere.

The trainer works with the folder on this machine. While the object store is unavailable, the run only reports warnings:
failed uploads are retried until the run ends, with the newest version of each file.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from yolojob.api.reasons import Reason
from yolojob_trainer.checkpoint.run_ownership import MARKER, BucketClaim
from yolojob_trainer.data.object_store import ObjectStore
from yolojob_trainer.errors import BadInput, TrainerError

REQUEST_TIMEOUT_SECONDS = 10.0
"""Time for the object store to retry one request; the mirror itself retries for minutes."""
RENEW_SECONDS = 30.0
"""Longest time until the claim is renewed if it is due."""
RETRY_SECONDS = 5.0
"""Pause after a failed upload."""
CLOSING_RETRY_SECONDS = 0.2
"""Additional pause, which is the only one while closing."""
CLOSE_SECONDS = 300.0
"""Time for the remaining uploads at the end of a run."""
INTERRUPTED_CLOSE_SECONDS = 15.0
"""Time for the same in a run that was asked to stop: the kubelet kills it 30 s after the signal."""


class Mirror:
    """Uploads the files of one folder, one after the other, in a thread."""

    def __init__(self, folder: Path, store: ObjectStore, owner: str, on_failure: Callable[[str], None]) -> None:
        """
        Args:
            folder: the run's folder on this machine.
            store: the root below which it is mirrored.
            owner: NAMESPACE/NAME of the job.
            on_failure: called in the thread with a message when a file could not be uploaded.
        """
        self._folder = folder
        self._store = store
        self._claim = BucketClaim(store, owner)
        self._on_failure = on_failure
        self.lost: BadInput | None = None
        """Why this run must not write there any more."""
        self._uploaded: set[str] = set()
        """Files that are in the object store."""
        self._pending: dict[str, int] = {}
        """File below the folder -> number of its newest request. A request during an upload must not be lost."""
        self._requests = 0
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)

    def list_files(self) -> set[str]:
        """List the files in the object store, below the root; needed once, before `start`.

        Raises:
            BadInput: access is denied.
            Unavailable: the object store does not answer.
        """
        try:
            self._uploaded = {file.path for file in self._store.files()}
        except BadInput as error:
            if error.reason != Reason.STORAGE_NOT_FOUND:
                raise
        return self._uploaded

    def start(self) -> None:
        """Claim the folder, which also checks before the training that uploads work; then upload in the background.

        Raises:
            BadInput: nothing can be uploaded, or another job writes there.
            Unavailable: the object store does not answer.
        """
        self._claim.acquire(self._on_failure)
        self._uploaded.add(MARKER)
        self._thread.start()

    def names(self, folder: str) -> list[str]:
        """Return the names of the files in a folder of the object store."""
        uploaded = tuple(self._uploaded)  # a copy, because the thread changes it
        return sorted(name.removeprefix(f"{folder}/") for name in uploaded if name.startswith(f"{folder}/"))

    def get(self, name: str) -> None:
        """Download a file if it does not exist on this machine.

        Raises:
            BadInput: it does not exist in the object store, or access is denied.
            Unavailable: the object store does not answer.
        """
        target = self._folder / name
        if target.exists():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.fetched")
        partial.write_bytes(self._store.read(name, 0, None))
        partial.replace(target)

    def put(self, *paths: Path) -> None:
        """Request uploads of these files, in this order; the content at the time of the upload counts.

        Raises:
            BadInput: another job has claimed the folder.
        """
        if self.lost:
            raise self.lost
        with self._changed:
            for path in paths:
                self._requests += 1
                self._pending[path.relative_to(self._folder).as_posix()] = self._requests
            self._changed.notify_all()

    def close(self, seconds: float) -> None:
        """Wait until everything is uploaded.

        Args:
            seconds: maximum time to wait.

        Raises:
            BadInput: another job has claimed the folder.
            TrainerError: the time is over.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: not self._pending, seconds):
                names = ", ".join(sorted(self._pending)[:5])
                message = f"{self._store.shown}: not uploaded within {seconds:.0f} s: {names}"
                raise TrainerError(Reason.STORAGE_FAILED, message)
        if self.lost:
            raise self.lost
        with suppress(TrainerError):  # the claim expires
            self._claim.release()

    def _run(self) -> None:
        while True:
            with self._changed:
                # There may be nothing to upload for hours, but the claim must be renewed.
                self._changed.wait_for(lambda: self._pending, RENEW_SECONDS)
                name, request = next(iter(self._pending.items()), (None, 0))
            try:
                self._claim.renew()
                if name is None:
                    continue
                self._upload(name)
            except (TrainerError, OSError) as error:
                if isinstance(error, BadInput) and error.reason == Reason.STORAGE_IN_USE:
                    self._give_up(error)
                    return
                if name is None:
                    continue  # the next round renews the claim
                self._on_failure(f"{name} could not be uploaded and will be retried: {error}")
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, RETRY_SECONDS)
                    self._pending[name] = self._pending.pop(name)  # move it to the end: other files may succeed
                time.sleep(CLOSING_RETRY_SECONDS)
                continue
            with self._changed:
                if self._pending.get(name) == request:
                    del self._pending[name]
                self._changed.notify_all()

    def _give_up(self, error: BadInput) -> None:
        """Upload nothing any more, because another job has claimed the folder."""
        with self._changed:
            self.lost = error
            self._pending.clear()
            self._changed.notify_all()

    def _upload(self, name: str) -> None:
        path = self._folder / name
        if not path.exists():
            return  # deleted since the request: a superseded checkpoint
        self._store.write(path, name)
        self._uploaded.add(name)
        # Older checkpoints may be deleted only when the newer one is uploaded.
        folder = name.rpartition("/")[0]
        for old in self.names(folder) if folder == "checkpoints" else ():
            if not (path.parent / old).exists():
                self._store.remove(f"{folder}/{old}")
                self._uploaded.discard(f"{folder}/{old}")
