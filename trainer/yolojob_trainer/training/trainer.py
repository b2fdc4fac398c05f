"""Trains a run: Ultralytics' model, data, loss and validator in a training loop of this package.

Reasons for not using upstream's loop: it has no boundaries between the phases of a step, reduces gradients in every
microbatch, waits for the GPU in every step, counts local devices instead of workers, and writes checkpoints in place.
"""

from __future__ import annotations

import signal
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from ultralytics.utils.torch_utils import unwrap_model

from yolojob.api.reasons import Reason
from yolojob.api.task import Task, metrics_by_name
from yolojob.api.time_parts import TimePart
from yolojob.api.trainer_report import TuningReport
from yolojob_trainer.checkpoint.run_folder import RunFolder
from yolojob_trainer.distributed.consensus import Decision
from yolojob_trainer.errors import Interrupted
from yolojob_trainer.system import gpu
from yolojob_trainer.tasks.vision_task import VISION_TASKS
from yolojob_trainer.training import memory
from yolojob_trainer.training.autotune import Tuner
from yolojob_trainer.training.callbacks import Callback, TrainEvent, emit
from yolojob_trainer.training.execution import ExecutionSettings
from yolojob_trainer.training.losses import EpochLosses
from yolojob_trainer.training.resumable import ResumableTrainer
from yolojob_trainer.training.setup import TrainerInputs
from yolojob_trainer.training.step import Diverged
from yolojob_trainer.training.time_account import StartupTimes

SHORT_VALIDATION_SECONDS = 10.0
"""A pod has 30 s to end after SIGTERM, by default. A shorter validation leaves time to end it and to save."""


class Trainer(ResumableTrainer):
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
        super().__init__(inputs, run_folder, callbacks)
        self.startup_times, self.startup_seconds = startup_times, 0.0
        self.carried_seconds = 0.0
        self._utilization = gpu.UtilizationReader(self.device)
        self.loss_names: tuple[str, ...] = ()
        self.epoch_seconds = self.validation_seconds = 0.0
        self.tuning_only = False
        self._stop_requested = False
        self._boundary: int | None = None
        """Number of the epoch's steps whose gradients are in the weights; None outside of the steps."""
        self._losses_at_boundary = self.losses
        """The epoch's losses after these steps."""

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
            smaller: ExecutionSettings | None = None
            try:
                self._train_epochs()
                finished = True
                emit(TrainEvent.TRAINED, self.listeners, self)
                self.end_span(TimePart.OTHER)
            except Diverged:
                self._roll_back()
            except torch.OutOfMemoryError:
                smaller = self._settings_after_out_of_memory()
                if smaller is None:
                    raise
            if smaller:  # after the handler: its traceback holds the tensors of the failed step
                self._step_again(smaller)
        emit(TrainEvent.TRAIN_END, self.listeners, self)

    def _settings_after_out_of_memory(self) -> ExecutionSettings | None:
        """Return settings with which the step may fit into memory; None if it was no step, or nothing is left to try.

        With several ranks nothing can be tried: the others wait for the gradients of this one.
        """
        return memory.halved(self) if self._boundary is not None and self.world.world_size == 1 else None

    def _step_again(self, settings: ExecutionSettings) -> None:
        """Go back to the last optimizer step, and continue with these settings."""
        assert self._boundary is not None
        self.optimizer.zero_grad()
        # They hold the tensors of the failed step.
        self.loss, self.loss_items = torch.zeros((), device=self.device), {}
        self.losses = self._losses_at_boundary
        self.seek(self.epoch, self._boundary)
        memory.use(self, settings)
        self.trained.restart_schedule(self.epoch)

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
        self._boundary = None
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
        if boundary == self.step:
            self._boundary, self._losses_at_boundary = boundary, self.losses.copy()
        due = self.world.is_main and time.monotonic() - self._saved_at >= self.run.spec.checkpoint.every_seconds
        flags = Decision(stop=self._stop_requested, save=due, diverged=self.losses.diverged)
        decision = self.consensus.exchange(flags)
        if decision.diverged:
            raise Diverged
        if decision.stop or decision.save:
            # The weights have not changed since the last optimizer step: a resume continues there.
            self._save_within_epoch(boundary, self._losses_at_boundary, stop=decision.stop)

    def _save_within_epoch(self, step: int, losses: EpochLosses, *, stop: bool) -> None:
        """Save a checkpoint from which a resume continues with this step of the epoch. All ranks must call it.

        Args:
            step: number of the epoch's steps whose gradients are in the weights.
            losses: of these steps.
            stop: whether the run ends then.

        Raises:
            Diverged: a loss or a weight is not finite; nothing is saved.
            Interrupted: `stop` is set.
        """
        self.check_finite()
        self.state.loss_totals = losses.totals(self.world)
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
            self._save_within_epoch(self.steps, self.losses, stop=bool(stop))

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
            # A rank without images to validate builds no criterion, whose class weights are buffers that upstream
            # broadcasts.
            self.ema.ema.criterion = None
            self.metrics, fitness = self.validate()
        self.fitness = None if fitness is None else float(fitness)
        if self.world.is_main:
            state = self.state
            state.metrics = metrics_by_name(self.metrics)
            if self.best_fitness == fitness or not state.best_metrics:
                self.best_fitness = self.fitness
                state.best_metrics = state.metrics
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

    def gpu_usage(self) -> tuple[int, float]:
        """Return (peak of the allocated bytes, current utilization from 0 to 1)."""
        return gpu.memory_peak(self.device), self._utilization.read()

    # --- for the callbacks --------------------------------------------------------------------------------------------

    def validation_images(self) -> Sequence[str]:
        """Return the files of the images of the validation."""
        images: Sequence[str] = self.test_loader.dataset.im_files
        return images

    @property
    def image_size(self) -> int:
        """Side of a training image in pixels."""
        return int(self.args.imgsz)

    # --- settings that the machine decides ---------------------------------------------------------------------------

    def fit_memory(self) -> None:
        memory.fit(self)

    def tune(self) -> None:
        tuning = self.run.spec.tuning
        if self.tuning_only or (tuning.mode == "Auto" and self._checkpoint is None):
            emit(TrainEvent.TUNING_START, self.listeners, self)
            tuner = Tuner(self, tuning.max_seconds, whole_job=not self.tuning_only)
            self.execution, self.tuning = tuner.run(self.execution)
            self.losses = self.new_losses()  # the trials may have chosen another number format
        elif tuning.mode == "Auto" and self._checkpoint is not None:
            self.execution = ExecutionSettings(**self._checkpoint["choice"])


def trainer_class(task: Task) -> type[Trainer]:
    """Return the trainer of a task: the loop of this package, with upstream's trainer of the task as its last base."""
    parts = VISION_TASKS[task]
    return type(f"Yolojob{parts.upstream.__name__}", (Trainer, parts.upstream), {"task": parts})
