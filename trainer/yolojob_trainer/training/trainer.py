"""Trains a run: Ultralytics' model, data, loss and validator in a training loop of this package.

Reasons for not using upstream's loop: it has no boundaries between the phases of a step, reduces gradients in every
microbatch, waits for the GPU in every step, counts local devices instead of workers, and writes checkpoints in place.
"""

from __future__ import annotations

import dataclasses
import io
import json
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import torch
from ultralytics.utils.torch_utils import unwrap_model

from yolojob.api.reasons import Reason
from yolojob.api.time_parts import TimePart
from yolojob.api.trainer_report import TuningReport
from yolojob_trainer.checkpoint.run_folder import RunFolder
from yolojob_trainer.checkpoint.store import FORMAT, CheckpointContent, decode
from yolojob_trainer.distributed.consensus import Consensus, Decision
from yolojob_trainer.errors import Interrupted, TrainerError
from yolojob_trainer.system import gpu
from yolojob_trainer.training import export
from yolojob_trainer.training.autotune import Tuner
from yolojob_trainer.training.callbacks import Callback, TrainEvent, emit
from yolojob_trainer.training.execution import ExecutionSettings
from yolojob_trainer.training.losses import IMAGES
from yolojob_trainer.training.setup import TrainerInputs
from yolojob_trainer.training.step import Diverged, StepTrainer
from yolojob_trainer.training.time_account import StartupTimes
from yolojob_trainer.training.train_state import check_same_dataset, check_same_run, run_identity

SHORT_VALIDATION_SECONDS = 10.0
"""A pod has 30 s to end after SIGTERM, by default. A shorter validation leaves time to end it and to save."""
MAX_ROLLBACKS = 3
"""Number of times that a run may go back to a checkpoint because its loss was not finite. Each rollback halves the
learning rate, because the same weights, samples and rate would diverge again."""


class Trainer(StepTrainer):
    """Trains one run on one rank; all ranks call `train` together."""

    def __init__(
        self,
        inputs: TrainerInputs,
        *,
        run_folder: RunFolder | None,
        callbacks: list[Callback],
        startup_times: StartupTimes,
    ) -> None:
        """
        Args:
            inputs: run, world, network and data.
            run_folder: where the run is kept; only rank 0 has one.
            callbacks: receive the events of the loop.
            startup_times: of this process.
        """
        super().__init__(inputs, callbacks)
        self.run_folder = run_folder
        self.startup_times, self.startup_seconds = startup_times, 0.0
        self.carried_seconds = 0.0
        self.consensus = Consensus(self.world)
        self._utilization = gpu.UtilizationReader(self.device)
        self.resumed_from: str | None = None
        self.epochs_done = 0
        self.metrics: dict[str, Any] | None = None
        self.fitness: float | None = None
        self.loss_names: tuple[str, ...] = ()
        self.epoch_seconds = self.validation_seconds = self.checkpoint_seconds = 0.0
        self.tuning_only = False
        self._stop_requested = False
        self._checkpoint: CheckpointContent | None = None
        """The checkpoint to resume from, until it is restored."""
        self._initial_checkpoint: bytes | None = None
        """The state before the first step; only on rank 0."""
        self._saved_at = time.monotonic()

    # --- the loop: see callbacks.TrainEvent for its pseudocode ------------------------------------------------------

    def train(self) -> None:
        """Train to the end.

        Raises:
            Interrupted: SIGTERM on any rank; the state is saved.
            BadInput: specification or data are wrong.
            TrainerError: the training failed.
        """
        self._checkpoint = self._read_checkpoint()
        self._setup_train()
        finished = self._restore()
        if self.tuning and self.run_folder:
            self.run_folder.write("tuning.json", self.tuning.model_dump_json(by_alias=True, indent=1).encode())
            self.run_folder.upload("tuning.json")
        if self.run_folder:
            self.run_folder.check_space(sum(p.numel() for p in unwrap_model(self.model).parameters()))
        # Handlers are installed only now: before there is anything to save, a signal may end the process at once.
        handlers = {s: signal.signal(s, self._request_stop) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            self._run_to_end(finished)
            if self.run_folder:
                self.run_folder.close(interrupted=False)
        except Interrupted:
            if self.run_folder:
                self.run_folder.close(interrupted=True)
            raise
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self.test_loader.close()

    def _run_to_end(self, finished: bool) -> None:
        self.train_time_start = time.time()
        self.carried_seconds = self.state.clocks.timing().trained_seconds
        self.startup_seconds = self.state.clocks.add_startup(self.startup_times, time.time())
        self.trained_epoch = min(self.epoch, self.epochs - 1)
        gpu.reset_memory_peak(self.device)  # trials and the set-up do not count
        emit(TrainEvent.TRAIN_START, self.listeners, self)
        self.clock.start()
        if finished and self.run_folder:
            self.run_folder.upload_all()
        while not finished:
            try:
                self._train_epochs()
                finished = True
            except Diverged:
                self._roll_back()
        emit(TrainEvent.TRAIN_END, self.listeners, self)

    def run_trials(self) -> TuningReport:
        """Run the trials of spec.tuning to find the fastest settings, and train nothing.

        Raises:
            BadInput: specification or data are wrong.
        """
        self.tuning_only = True
        self._setup_train()
        self.test_loader.close()
        assert self.tuning is not None
        return self.tuning

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Set up for a bench: ready to train the first step of the run, without the loop and without a checkpoint.

        Raises:
            BadInput: specification or data are wrong.
        """
        self._setup_train()
        self._restore()
        try:
            self.startup_seconds = self.state.clocks.add_startup(self.startup_times, time.time())
            emit(TrainEvent.BENCH_START, self.listeners, self)
            yield
        finally:
            self.test_loader.close()

    def _request_stop(self, *_: Any) -> None:
        self._stop_requested = True

    def _train_epochs(self) -> None:
        batches = self.batches(self.epoch, self.step)
        self._saved_at = time.monotonic()
        stop = False
        while not stop and self.epoch < self.epochs:
            self._train_epoch(batches)
            self._save_before_validation()
            self.end_epoch()
            stop, best = self._judge_epoch()
            done = stop or self.epoch + 1 >= self.epochs
            self.seek(self.epoch + 1, 0)
            self.epochs_done = self.epoch
            self.losses.reset()
            self.state.loss_totals = {}
            emit(TrainEvent.EPOCH_END, self.listeners, self)
            if done or best or self.epoch % self.run.spec.checkpoint.every_epochs == 0:
                self.save(finished=done)
        self.consensus.flush()

    def _train_epoch(self, batches: Iterator[dict[str, Any]]) -> None:
        began = time.perf_counter()
        self.trained_epoch = self.epoch
        self.end_span(TimePart.OTHER)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # like upstream, the scheduler is stepped before the optimizer
            self.scheduler.step()
        self.set_train_mode()
        self.optimizer.zero_grad()
        emit(TrainEvent.EPOCH_START, self.listeners, self)
        boundary = self.step
        while self.step < self.steps:
            self.agree(boundary)
            boundary = self.next_step(batches, boundary)
        self.collect_spans(wait=True)
        self.epoch_seconds = time.perf_counter() - began

    def next_step(self, batches: Iterator[dict[str, Any]], boundary: int) -> int:
        """Train the next step.

        Args:
            batches: the microbatches, beginning with the step's first one.
            boundary: number of the epoch's steps whose gradients are in the weights.

        Returns:
            The new boundary.
        """
        self.warm_up()
        update = self.step + 1 - boundary >= self.accumulate or self.step + 1 == self.steps
        self.train_step(batches, update)
        self.seek(self.epoch, self.step + 1)
        self.end_step()
        emit(TrainEvent.STEP_END, self.listeners, self)
        return self.step if update else boundary

    def agree(self, boundary: int) -> None:
        """Exchange flags with all ranks, and act on the last step's result: on every rank in the same step.

        Args:
            boundary: number of the epoch's steps whose gradients are in the weights.

        Raises:
            Diverged: the loss is not finite on any rank.
            Interrupted: any rank was asked to stop; the state is saved.
        """
        due = self.world.is_main and time.monotonic() - self._saved_at >= self.run.spec.checkpoint.every_seconds
        flags = Decision(stop=self._stop_requested, save=due, diverged=self.losses.diverged)
        decision = self.consensus.exchange(flags)
        if decision.diverged:
            raise Diverged
        if decision.stop or decision.save:
            # The weights have not changed since the last optimizer step: a resume continues there.
            self._save_within_epoch(boundary, stop=decision.stop)

    def _save_within_epoch(self, step: int, *, stop: bool) -> None:
        """Save a checkpoint from which a resume continues with this step of the epoch. All ranks must call it.

        Raises:
            Diverged: a loss or a weight is not finite; nothing is saved.
            Interrupted: `stop` is set.
        """
        self.check_finite()
        self.state.loss_totals = self.losses.totals(self.world)
        self.save(step=step)
        if stop:
            position = f"epoch {self.epoch + 1}, step {step} of {self.steps}"
            raise Interrupted(Reason.INTERRUPTED, f"stopped by a signal and saved at {position}")

    def _save_before_validation(self) -> None:
        """Save the epoch's training if a stop was requested, or if the validation may take long. Collective.

        The signal is looked at between steps. A validation that outlasts the grace period of the pod would end in
        SIGKILL, and lose everything since the last checkpoint.

        Raises:
            Diverged: a loss or a weight is not finite.
            Interrupted: any rank was asked to stop; the state is saved.
        """
        if not self._validates:
            return
        unsaved = time.monotonic() - self._saved_at
        long = self.validation_seconds > SHORT_VALIDATION_SECONDS or not self.state.validations
        due = self.world.is_main and long and unsaved > SHORT_VALIDATION_SECONDS
        stop, save = self.world.sum([float(self._stop_requested), float(due)])
        if stop or save:
            self._save_within_epoch(self.steps, stop=bool(stop))

    # --- the end of an epoch --------------------------------------------------------------------------------------

    def end_epoch(self) -> None:
        """Validate if it is due, and add the epoch's row to the results. All ranks must call it.

        Raises:
            Diverged: a loss or a weight is not finite.
        """
        criterion = unwrap_model(self.model).criterion
        if hasattr(criterion, "update"):
            criterion.update()
        self.lr = {f"lr/pg{i}": group["lr"] for i, group in enumerate(self.optimizer.param_groups)}
        self.ema.update_attr(self.model, include=["yaml", "nc", "args", "names", "stride", "class_weights"])
        self.check_finite()
        losses = self.losses.mean(self.world)
        self.end_span(TimePart.OTHER)
        self.fitness = None  # an epoch without validation is never the best one
        if self._validates:
            self._validate()
        if self.world.is_main:
            clocks = self.state.clocks
            self.state.rows.append(
                {
                    "epoch": self.epoch + 1,
                    "time": sum(clocks.training.values()) + clocks.validation,
                    **{f"train/{name}": value for name, value in losses.items()},
                    **((self.metrics or {}) if self._validates else {}),
                    **self.lr,
                }
            )

    @property
    def _validates(self) -> bool:
        """Whether a validation follows the current epoch; the same on all ranks."""
        return self.run.spec.train.validates(self.epoch)

    def _validate(self) -> None:
        emit(TrainEvent.VALIDATION_START, self.listeners, self)
        began = time.perf_counter()
        if not self.loss_names:
            self.loss_names = tuple(self.loss_items)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.metrics, fitness = self.validate()
        self.fitness = None if fitness is None else float(fitness)
        if self.world.is_main:
            state = self.state
            state.map50 = self.metrics["metrics/mAP50(B)"]
            state.map = self.metrics["metrics/mAP50-95(B)"]
            if self.best_fitness == fitness or not state.best_metrics:
                self.best_fitness = self.fitness
                state.best_metrics = {"map50": state.map50, "map": state.map}
        self.validation_seconds = time.perf_counter() - began
        self.state.validations += 1
        self.end_span(TimePart.VALIDATION)
        emit(TrainEvent.VALIDATION_END, self.listeners, self)

    def _judge_epoch(self) -> tuple[bool, bool]:
        """Return whether to stop early, and whether the epoch is the best: rank 0's decision, on every rank.

        A new best model is saved immediately, because the reported result must exist. Only rank 0 has the fitness, but
        saving is collective.
        """
        stop = best = False
        if self.world.is_main:
            stop = bool(self.stopper(self.epoch + 1, self.fitness))
            best = self.fitness is not None and self.fitness == self.best_fitness
        flags = self.world.sum([float(stop), float(best)])
        return flags[0] > 0, flags[1] > 0

    # --- time -----------------------------------------------------------------------------------------------------

    def remaining_seconds(self, rate: float | None) -> float | None:
        """Return the expected time to the end at `rate` images per second; None without a rate."""
        if not rate:
            return None
        state = self.state
        epochs: int = self.epochs - self.epoch
        images = epochs * self.order.samples - min(self.step * self.order.batch, self.order.samples)
        validation: float = state.clocks.validation / state.validations if state.validations else 0.0
        validations = self.run.spec.train.validations(self.epoch)
        return float(images) / rate + validations * validation + epochs * self.checkpoint_seconds

    def _position(self) -> str:
        return f"epoch {self.epoch + 1}, step {self.step} of {self.steps}"

    def _learning_rates(self) -> str:
        return ", ".join(f"{group['lr']:.4g}" for group in self.optimizer.param_groups)

    def gpu_usage(self) -> tuple[int, float]:
        """Return (peak of the allocated bytes, current utilization from 0 to 1)."""
        return gpu.memory_peak(self.device), self._utilization.read()

    # --- state ----------------------------------------------------------------------------------------------------

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

    def tune(self) -> None:
        tuning = self.run.spec.tuning
        if self.tuning_only or (tuning.mode == "Auto" and self._checkpoint is None):
            emit(TrainEvent.TUNING_START, self.listeners, self)
            tuner = Tuner(self, tuning.max_seconds, whole_job=not self.tuning_only)
            self.execution, self.tuning = tuner.run(self.execution)
            self.losses = self.new_losses()  # the trials may have chosen another number format
        elif tuning.mode == "Auto" and self._checkpoint is not None:
            self.execution = ExecutionSettings(**self._checkpoint["choice"])

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
        check_same_dataset(checkpoint, self.data["names"], self._storage)
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
