"""Saves the state of a training, and continues from it: after an interruption, and after a loss that is not finite."""

from __future__ import annotations

import dataclasses
import io
import json
import time
from collections.abc import Callable
from typing import Any, BinaryIO

import torch

from yolojob.api.reasons import Reason
from yolojob.api.time_parts import TimePart
from yolojob_trainer.checkpoint.run_folder import RunFolder
from yolojob_trainer.checkpoint.store import FORMAT, CheckpointContent, decode
from yolojob_trainer.distributed.consensus import Consensus
from yolojob_trainer.errors import TrainerError
from yolojob_trainer.training import export
from yolojob_trainer.training.callbacks import Callback, TrainEvent, emit
from yolojob_trainer.training.losses import IMAGES
from yolojob_trainer.training.setup import TrainerInputs
from yolojob_trainer.training.step import StepTrainer
from yolojob_trainer.training.train_state import check_same_dataset, check_same_run, run_identity

MAX_ROLLBACKS = 3
"""Number of times that a run may go back to a checkpoint because its loss was not finite. Each rollback halves the
learning rate, because the same weights, samples and rate would diverge again."""


class ResumableTrainer(StepTrainer):
    """A trainer of steps whose state is saved and restored. All ranks call its methods together."""

    def __init__(self, inputs: TrainerInputs, run_folder: RunFolder | None, callbacks: list[Callback]) -> None:
        super().__init__(inputs, callbacks)
        self.run_folder = run_folder
        self.consensus = Consensus(self.world)
        self.resumed_from: str | None = None
        self.epochs_done = 0
        self.metrics: dict[str, Any] | None = None
        self.fitness: float | None = None
        self.checkpoint_seconds = 0.0
        self._checkpoint: CheckpointContent | None = None
        """The checkpoint to resume from, until it is restored."""
        self._initial_checkpoint: bytes | None = None
        """The state before the first step; only on rank 0."""
        self._saved_at = time.monotonic()

    def save(self, step: int | None = None, finished: bool = False) -> None:
        """Save a checkpoint, and at the end of an epoch weights. All ranks must call it; only rank 0 writes.

        Args:
            step: step of the epoch that a resume continues with; by default the current one.
            finished: whether the run is complete.
        """
        began = time.perf_counter()
        step = self.step if step is None else step
        # Before the state is captured, so that its clocks are complete.
        self.end_span(TimePart.OTHER)
        if self.run_folder:
            files = self._export_files() if step == 0 else {}
            checkpoint = self._capture(step, finished)
            self.run_folder.save(checkpoint, files=files, last=finished)
        self._saved_at = time.monotonic()
        self.checkpoint_seconds = time.perf_counter() - began
        emit(TrainEvent.CHECKPOINT, self.listeners, self)
        self.end_span(TimePart.CHECKPOINT)

    def _capture(self, step: int, finished: bool) -> CheckpointContent:
        """Return everything that a resume needs, as tensors and plain values."""
        return {
            "fingerprint": json.dumps(run_identity(self.run.spec)),
            "choice": dataclasses.asdict(self.execution),
            "names": list(self.data["names"].values()),
            "keypoints": self.data.get("kpt_shape"),
            "samples": self.order.samples,
            "samples_seen": min(step * self.order.batch, self.order.samples),
            "finished": finished,
            **self.trained.state_dict(),
            **self.state.state_dict(),
            "step": step,
        }

    def _apply(self, checkpoint: CheckpointContent) -> None:
        """Continue from a checkpoint, with any number of ranks. For the order see `train_state`."""
        self.trained.load_state_dict(checkpoint)
        self.state.load_state_dict(checkpoint)
        self.trained.scale_rates(self.state.rate_scale)
        self.trained.restart_schedule(self.epoch)
        self.losses = self.new_losses()
        self.losses.restore(self.state.loss_totals, self.world)
        # Upstream's validation reads them from the last step, which may be one of another process.
        self.loss = torch.zeros((), device=self.device)
        self.loss_items = {name: self.loss for name in self.state.loss_totals if name != IMAGES}
        self.epochs_done = self.epoch
        self.resumed_from = f"epoch {self.epoch + 1}, image {checkpoint['samples_seen']} of {self.order.samples}"

    def _export_files(self) -> dict[str, Callable[[BinaryIO], object]]:
        """Return path -> writer of the files for people, at the end of an epoch."""
        metrics = {**(self.metrics or {}), "fitness": self.fitness}
        content = export.stock_checkpoint(self.ema.ema, self.args, self.best_fitness, metrics)

        def write_weights(file: BinaryIO) -> None:
            torch.save(content, file)

        files: dict[str, Callable[[BinaryIO], object]] = {"weights/last.pt": write_weights}
        if self.fitness is not None and self.fitness == self.best_fitness:
            files["weights/best.pt"] = write_weights
        if self.args.save_period > 0 and self.epoch % self.args.save_period == 0:
            files[f"weights/epoch{self.epoch}.pt"] = write_weights
        table = export.results_csv(self.state.rows).encode()
        return {**files, "results.csv": lambda file: file.write(table)}

    def _read_checkpoint(self) -> CheckpointContent | None:
        """Return the newest intact checkpoint, on all ranks; None in a new run.

        Raises:
            BadInput: it belongs to another run.
        """
        data = None
        if self.run_folder:
            data, faults = self.run_folder.newest()
            for fault in faults:
                self.warn(fault)
        data = self.world.broadcast_bytes(data)
        if data is None:
            return None
        checkpoint = decode(data)
        check_same_run(checkpoint, self.run.spec, self._storage)
        return checkpoint

    @property
    def _storage(self) -> str:
        """Where the run's checkpoints are, for messages; only rank 0 knows."""
        return self.run_folder.uri if self.run_folder else "the storage"

    def _restore(self) -> bool:
        """Continue from the checkpoint that was read, if any; return whether it is of a finished run."""
        if self.world.is_main:  # it broadcasts it if a rollback needs it
            initial = io.BytesIO()
            torch.save({"format": FORMAT, **self._capture(0, False)}, initial)
            self._initial_checkpoint = initial.getvalue()
        checkpoint, self._checkpoint = self._checkpoint, None
        if checkpoint is None:
            return False
        check_same_dataset(checkpoint, self.data, self._storage)
        self._apply(checkpoint)
        if (samples := checkpoint.get("samples", self.order.samples)) != self.order.samples and self.step:
            # The samples of the epoch's first steps are not those of the new order.
            self.warn(f"the dataset had {samples} images and has {self.order.samples}: the epoch begins again")
            self.seek(self.epoch, 0)
            self.losses.reset()
        return bool(checkpoint["finished"])

    def _roll_back(self) -> None:
        """Go back to the newest checkpoint with half the learning rate. All ranks call it in the same step.

        Raises:
            TrainerError: too many rollbacks.
        """
        problem = f"the loss is not finite at {self._position()}, learning rate {self._learning_rates()}"
        self.consensus.flush()
        self.collect_spans(wait=True)
        rollbacks = self.state.rollbacks + 1
        if rollbacks > MAX_ROLLBACKS:
            raise TrainerError(
                Reason.NON_FINITE_LOSS, f"{problem}; {MAX_ROLLBACKS} rollbacks with a lower one did not help"
            )
        clocks = self.state.clocks
        data, _ = self.run_folder.newest() if self.run_folder else (None, [])
        data = self.world.broadcast_bytes(data or self._initial_checkpoint)
        assert data is not None
        self._apply(decode(data))
        self.state.clocks, self.state.rollbacks = clocks, rollbacks
        self.trained.scale_rates(self.state.rate_scale)
        self.warn(
            f"{problem}: back to epoch {self.epoch + 1}, step {self.step}, with {self.state.rate_scale:g} times the "
            f"learning rate (rollback {rollbacks} of {MAX_ROLLBACKS})"
        )
        self.end_span(TimePart.CHECKPOINT)

    def _position(self) -> str:
        return f"epoch {self.epoch + 1}, step {self.step} of {self.steps}"

    def _learning_rates(self) -> str:
        return ", ".join(f"{group['lr']:.4g}" for group in self.optimizer.param_groups)
