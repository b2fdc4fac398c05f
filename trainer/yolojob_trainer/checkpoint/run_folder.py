"""What a run keeps: checkpoints, weights, results, traces. On this machine, and mirrored where the job wants it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from yolojob.api.reasons import Reason
from yolojob.api.spec import YoloTrainingJobSpec
from yolojob_trainer.checkpoint import bucket_mirror
from yolojob_trainer.checkpoint.bucket_mirror import Mirror
from yolojob_trainer.checkpoint.store import CheckpointStore, State, write_atomically
from yolojob_trainer.data.object_store import Remote
from yolojob_trainer.errors import BadInput, TrainerError

CHECKPOINTS, WEIGHTS, TRACE = "checkpoints", "weights", "trace"
MARKER = ".yolojob"
"""A file that is uploaded first, to see whether that is possible."""


class Storage:
    """The run's folder. Only rank 0 has one."""

    def __init__(self, folder: Path, spec: YoloTrainingJobSpec, failed: Callable[[str], None]) -> None:
        """
        Args:
            folder: on this machine; made if it is not there.
            spec: the job's.
            failed: told when something could not be saved or uploaded.

        Raises:
            BadInput: it cannot be written.
            TrainerError: its object store does not answer.
        """
        self.folder = folder
        self.uri = str(spec.storage.uri).rstrip("/") if spec.storage else str(folder)
        self._failed = failed
        self._store = CheckpointStore(folder / CHECKPOINTS, spec.checkpoint.keep)
        self._keep = spec.checkpoint.keep
        self._mirror: Mirror | None = None
        try:
            (folder / WEIGHTS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(Reason.STORAGE_FAILED, f"spec.storage: {folder}: {error.strerror}") from None
        if spec.storage and spec.storage.uri.is_remote:
            remote = Remote(self.uri, "spec.storage.uri", patience=bucket_mirror.PATIENCE)
            self._mirror = Mirror(folder, remote, failed)
            (folder / MARKER).write_text("This folder belongs to a run of yolojob.\n")
            self._mirror.start(MARKER)

    def check_space(self, parameters: int) -> None:
        """Whether what will be saved fits: weights, gradients' moments and EMA in fp32 for each checkpoint.

        Args:
            parameters: number of the network's parameters.

        Raises:
            BadInput: it does not.
        """
        needed = parameters * (16 * (self._keep + 1) + 2 * 3) + (4 << 20)
        free = shutil.disk_usage(self.folder).free + sum(p.stat().st_size for p in self._store.paths())
        if free < needed:
            raise BadInput(
                Reason.NO_SPACE,
                f"{self.folder} has {free / 2**20:.0f} MiB left, and checkpoints and weights need about "
                f"{needed / 2**20:.0f} MiB: free some, or choose another spec.storage.uri",
            )

    def newest(self) -> tuple[bytes | None, list[str]]:
        """Bytes of the newest checkpoint that is whole, here or in the mirror, and what was wrong with newer ones.

        Raises:
            BadInput: the mirror may not be read.
            TrainerError: the mirror does not answer.
        """
        there = self._mirror
        if there is None:
            return self._store.newest()
        return self._store.newest(there.names(CHECKPOINTS), lambda name: there.get(f"{CHECKPOINTS}/{name}"))

    def save(self, state: State, *, epoch: int, step: int, files: dict[str, Callable[..., object]], last: bool) -> None:
        """Write files for people, then the state. A failure is told, and the training may go on.

        Args:
            state: what a resume takes up from.
            epoch: epochs completed.
            step: steps done in the epoch that is running.
            files: path below the run's folder -> writes its content into a binary file.
            last: there will be no other chance.

        Raises:
            TrainerError: this was the last chance.
        """
        try:
            for name, write in files.items():
                write_atomically(self.folder / name, write)
            saved = self._store.save(state, epoch=epoch, step=step)
        except OSError as error:
            message = f"no checkpoint after epoch {epoch}, step {step}: {error.strerror or error} ({self.folder})"
            self._failed(message)
            if last:
                raise TrainerError(
                    Reason.STORAGE_FAILED, f"the trained weights could not be saved: {message}"
                ) from error
            return
        if self._mirror:
            self._mirror.put(*(self.folder / name for name in files), saved)

    def append(self, name: str, data: bytes) -> None:
        """Add to a file. What cannot be written is told and lost: nothing depends on it."""
        self._put(name, data, "ab")

    def write(self, name: str, data: bytes) -> None:
        """Write a file. What cannot be written is told and lost: nothing depends on it."""
        self._put(name, data, "wb")

    def _put(self, name: str, data: bytes, mode: str) -> None:
        path = self.folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open(mode) as file:
                file.write(data)
        except OSError as error:
            self._failed(f"{name}: {error.strerror or error} ({self.folder})")

    def upload(self, name: str) -> None:
        """Bring the mirror's copy of a file up to date, in the background."""
        if self._mirror:
            self._mirror.put(self.folder / name)

    def upload_all(self) -> None:
        """Upload what a run has left here: its end may have been reached while the mirror was away."""
        if self._mirror:
            kept = [*(self.folder / WEIGHTS).glob("*.pt"), *self.folder.glob("results.csv"), *self._store.paths()[:1]]
            self._mirror.put(*kept)

    def close(self, *, interrupted: bool) -> None:
        """Wait for the uploads.

        Raises:
            TrainerError: they do not get done.
        """
        if self._mirror:
            self._mirror.close(bucket_mirror.GRACE_SECONDS if interrupted else bucket_mirror.CLOSE_SECONDS)
