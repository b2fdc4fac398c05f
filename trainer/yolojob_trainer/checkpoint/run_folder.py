"""The folder of a run: checkpoints, weights, results and traces, on this machine and optionally in an object store."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from yolojob.api.reasons import Reason
from yolojob.api.run import Run
from yolojob_trainer.checkpoint import bucket_mirror
from yolojob_trainer.checkpoint.bucket_mirror import Mirror
from yolojob_trainer.checkpoint.run_ownership import FolderLock, check_no_foreign_results
from yolojob_trainer.checkpoint.store import CheckpointContent, CheckpointStore, write_atomically
from yolojob_trainer.data.object_store import ObjectStore
from yolojob_trainer.errors import BadInput, TrainerError

CHECKPOINTS, WEIGHTS, TRACE = "checkpoints", "weights", "trace"


class RunFolder:
    """The folder of a run; only rank 0 has one."""

    def __init__(self, path: Path, run: Run, on_failure: Callable[[str], None]) -> None:
        """
        Args:
            path: the folder on this machine; created if missing.
            run: whose folder it is.
            on_failure: called with a message when something could not be saved or uploaded.

        Raises:
            BadInput: the folder or the object store cannot be written, or belongs to somebody else.
            TrainerError: the object store does not answer.
        """
        spec = run.spec
        self.path = path
        self.uri = str(spec.storage.uri).rstrip("/") if spec.storage else str(path)
        self._on_failure = on_failure
        self._store = CheckpointStore(path / CHECKPOINTS, spec.checkpoint.keep)
        self._keep = spec.checkpoint.keep
        self._mirror: Mirror | None = None
        # Only these folders: a claim may hold millions of other files.
        existing = (file for pattern in ("*", f"{WEIGHTS}/*", f"{CHECKPOINTS}/*") for file in path.glob(pattern))
        check_no_foreign_results((file.relative_to(path).as_posix() for file in existing), str(path))
        try:
            (path / WEIGHTS).mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(path, f"{run.namespace}/{run.name}", on_failure)
        except OSError as error:
            raise BadInput(Reason.STORAGE_FAILED, f"spec.storage: {path}: {error.strerror}") from None
        if spec.storage and spec.storage.uri.is_remote:
            store = ObjectStore(self.uri, "spec.storage.uri", retry_timeout=bucket_mirror.REQUEST_TIMEOUT_SECONDS)
            self._mirror = Mirror(path, store, f"{run.namespace}/{run.name}", on_failure)
            check_no_foreign_results(self._mirror.list_files(), self.uri)
            self._mirror.start()

    def check_space(self, parameters: int) -> None:
        """Check that checkpoints and weights will fit on the disk.

        A checkpoint holds weights, the moments of the gradients and the EMA in fp32.

        Args:
            parameters: number of the network's parameters.

        Raises:
            BadInput: they will not fit.
        """
        needed = parameters * (16 * (self._keep + 1) + 2 * 3) + (4 << 20)
        free = shutil.disk_usage(self.path).free + sum(p.stat().st_size for p in self._store.paths())
        if free < needed:
            raise BadInput(
                Reason.NO_SPACE,
                f"{self.path} has {free / 2**20:.0f} MiB left, but checkpoints and weights need about "
                f"{needed / 2**20:.0f} MiB: free some space, or choose another spec.storage.uri",
            )

    def newest(self) -> tuple[bytes | None, list[str]]:
        """Find the newest intact checkpoint, here or in the object store.

        Returns:
            Its bytes, or None, and a message for each newer checkpoint that cannot be used.

        Raises:
            BadInput: access to the object store is denied.
            TrainerError: the object store does not answer.
        """
        mirror = self._mirror
        if mirror is None:
            return self._store.newest()
        return self._store.newest(mirror.names(CHECKPOINTS), lambda name: mirror.get(f"{CHECKPOINTS}/{name}"))

    def save(
        self, checkpoint: CheckpointContent, *, files: Mapping[str, Callable[[BinaryIO], object]], last: bool
    ) -> None:
        """Write files for people, then a checkpoint. A failure is reported, and the training may continue.

        Args:
            checkpoint: with `epoch`, the epochs completed, and `step`, the steps done in the current epoch.
            files: path below the run's folder -> function that writes the content into a binary file.
            last: whether this is the last save of the run.

        Raises:
            TrainerError: the last save failed.
        """
        epoch, step = checkpoint["epoch"], checkpoint["step"]
        try:
            for name, write in files.items():
                write_atomically(self.path / name, write)
            saved = self._store.save(checkpoint, epoch=epoch, step=step)
        except OSError as error:
            message = f"no checkpoint after epoch {epoch}, step {step}: {error.strerror or error} ({self.path})"
            self._on_failure(message)
            if last:
                raise TrainerError(
                    Reason.STORAGE_FAILED, f"the trained weights could not be saved: {message}"
                ) from error
            return
        if self._mirror:
            self._mirror.put(*(self.path / name for name in files), saved)

    def append(self, name: str, data: bytes) -> None:
        """Append to a file that no resume needs. If that fails, the failure is reported and the data is lost."""
        self._put(name, data, "ab")

    def write(self, name: str, data: bytes) -> None:
        """Write a file that no resume needs. If that fails, the failure is reported and the data is lost."""
        self._put(name, data, "wb")

    def _put(self, name: str, data: bytes, mode: str) -> None:
        path = self.path / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open(mode) as file:
                file.write(data)
        except OSError as error:
            self._on_failure(f"{name}: {error.strerror or error} ({self.path})")

    def upload(self, name: str) -> None:
        """Upload a file to the object store, in the background."""
        if self._mirror:
            self._mirror.put(self.path / name)

    def upload_all(self) -> None:
        """Upload the files of a finished run again: its object store may have been unavailable at the end."""
        if self._mirror:
            files = [*(self.path / WEIGHTS).glob("*.pt"), *self.path.glob("results.csv"), *self._store.paths()[:1]]
            self._mirror.put(*files)

    def close(self, *, interrupted: bool) -> None:
        """Wait for the uploads.

        Args:
            interrupted: whether the run was asked to stop, which leaves less time.

        Raises:
            TrainerError: they do not complete in time.
        """
        if self._mirror:
            self._mirror.close(bucket_mirror.INTERRUPTED_CLOSE_SECONDS if interrupted else bucket_mirror.CLOSE_SECONDS)
        self._lock.release()
