"""The run's folder in an object store: uploaded in the background, fetched back when the run goes on elsewhere.

The folder on this machine stays what the trainer works with. A store that fails for a while costs nothing but a warning:
what could not be uploaded is tried again, the newest version of each file only, until the run ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from yolojob.api.reasons import Reason
from yolojob_trainer.data.object_store import Remote
from yolojob_trainer.errors import TrainerError

PATIENCE = 10.0
"""Seconds for which a remote should repeat one request; the repeating over minutes is done here."""
RETRY_SECONDS = 5.0
"""Pause after a failure."""
CLOSE_SECONDS = 300.0
"""How long a trained run waits for what is not uploaded yet."""
GRACE_SECONDS = 15.0
"""The same when it was asked to stop: the kubelet kills it 30 s after the signal."""


class Mirror:
    """Uploads files of one folder, one after the other, from a thread."""

    def __init__(self, folder: Path, remote: Remote, failed: Callable[[str], None]) -> None:
        """
        Args:
            folder: the run's folder on this machine.
            remote: where it is mirrored.
            failed: told, from the thread, when a file could not be uploaded.
        """
        self._folder = folder
        self._remote = remote
        self._failed = failed
        self._there: set[str] = set()
        self._pending: dict[str, int] = {}
        """File below the folder -> number of the request to upload it; a newer request outlives an older upload."""
        self._requests = 0
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)

    def start(self, name: str) -> None:
        """Upload one file now, to know before the training whether that is possible, and look at what is there.

        Raises:
            BadInput: it is not possible.
            Unavailable: no answer.
        """
        self._remote.write(self._folder / name, name)
        self._there = {file.path for file in self._remote.files()}
        self._thread.start()

    def names(self, folder: str) -> list[str]:
        """Names of the files in a folder of the mirror."""
        there = tuple(self._there)  # the thread adds to it
        return sorted(name.removeprefix(f"{folder}/") for name in there if name.startswith(f"{folder}/"))

    def get(self, name: str) -> None:
        """Bring a file here, unless it is here.

        Raises:
            BadInput: it is not there any more, or may not be read.
            Unavailable: no answer.
        """
        target = self._folder / name
        if target.exists():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.fetched")
        partial.write_bytes(self._remote.read(name, 0, None))
        partial.replace(target)

    def put(self, *paths: Path) -> None:
        """Upload these files, in this order, as they are when their turn comes."""
        with self._changed:
            for path in paths:
                self._requests += 1
                self._pending[path.relative_to(self._folder).as_posix()] = self._requests
            self._changed.notify_all()

    def close(self, seconds: float) -> None:
        """Wait until everything is uploaded.

        Raises:
            TrainerError: it was not within so many seconds.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: not self._pending, seconds):
                names = ", ".join(sorted(self._pending)[:5])
                message = f"{self._remote.shown}: not uploaded within {seconds:.0f} s: {names}"
                raise TrainerError(Reason.STORAGE_FAILED, message)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending)
                name, request = next(iter(self._pending.items()))
            try:
                self._upload(name)
            except (TrainerError, OSError) as error:
                self._failed(f"{name} could not be uploaded, and is tried again: {error}")
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, RETRY_SECONDS)
                    self._pending[name] = self._pending.pop(name)  # the others may do better meanwhile
                time.sleep(0.2)  # when closing, there is no other pause
                continue
            with self._changed:
                if self._pending.get(name) == request:
                    del self._pending[name]
                self._changed.notify_all()

    def _upload(self, name: str) -> None:
        path = self._folder / name
        if not path.exists():
            return  # removed again: a checkpoint that has been superseded
        self._remote.write(path, name)
        self._there.add(name)
        # Only now are those before it superfluous there, too.
        folder = name.rpartition("/")[0]
        for old in self.names(folder) if folder == "checkpoints" else ():
            if not (path.parent / old).exists():
                self._remote.remove(f"{folder}/{old}")
                self._there.discard(f"{folder}/{old}")
