"""The training itself: Ultralytics' model, data, loss and validator in a loop of our own.

Why a loop of our own: upstream's has no boundaries between the phases of a step, reduces gradients in every micro-step,
waits for the GPU in every step, counts local devices instead of workers, and writes checkpoints in place.
"""

from __future__ import annotations

import contextlib
import io
import random
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from ultralytics.utils.torch_utils import unwrap_model

from yolojob.api.measurement import Measurement
from yolojob.api.reasons import Reason
from yolojob.api.run import Run
from yolojob.api.time_parts import TimePart
from yolojob.api.trainer_report import TuningReport
from yolojob_trainer.bench.bench import Bench
from yolojob_trainer.checkpoint.run_folder import Storage
from yolojob_trainer.checkpoint.store import FORMAT, decode
from yolojob_trainer.distributed.world import Votes, World
from yolojob_trainer.errors import Interrupted, TrainerError
from yolojob_trainer.system import gpu
from yolojob_trainer.training import train_state
from yolojob_trainer.training.autotune import Choice, Tuner
from yolojob_trainer.training.callbacks import Callback, Event, emit
from yolojob_trainer.training.losses import EpochLosses
from yolojob_trainer.training.phase_clock import Beginning, Clocks
from yolojob_trainer.training.setup import NetworkSource, Pipeline

MAX_ROLLBACKS = 3
"""Times that a run may go back to a checkpoint because its loss was not finite. Each halves the learning rate: the same
weights, samples and rate would come to the same end."""


class Diverged(Exception):
    """The loss or a weight is not finite, on every rank in the same step."""


class Trainer(Pipeline):
    """Trains one run on one rank; all ranks call `train` together."""

    def __init__(
        self,
        run: Run,
        world: World,
        *,
        data: Path,
        model: NetworkSource,
        storage: Storage | None,
        scratch: Path,
        cache: Path,
        callbacks: list[Callback],
        warn: Callable[[str], None],
        beginning: Beginning,
    ) -> None:
        """
        Args:
            run: what is trained.
            world: this process among all, connected.
            data: data file, see `yolojob_trainer.data.dataset_config`.
            model: network description and starting weights, see `yolojob_trainer.model.resolve`.
            storage: where the run is kept; rank 0 has one.
            scratch: a folder for what Ultralytics writes on the other ranks.
            cache: folder of this node for label caches.
            callbacks: listeners.
            warn: called with every warning for the user.
            beginning: how the process came here.
        """
        save_dir = storage.folder if storage else scratch
        super().__init__(run, world, data=data, model=model, save_dir=save_dir, cache=cache, warn=warn)
        self.storage, self.listeners = storage, callbacks
        self.beginning, self.startup_took = beginning, 0.0
        self.clocks = Clocks()
        self.carried_seconds = 0.0
        self.votes = Votes(world)
        self.rows: list[dict[str, float]] = []
        self.resumed_from: str | None = None
        self.epoch = self.step = 0
        self.epochs_done = 0
        self.map50: float | None = None
        self.map: float | None = None
        self.best_metrics: dict[str, float] = {}
        self.metrics: dict[str, Any] | None = None
        self.best_fitness: float | None = None
        self.fitness: float | None = None
        self.loss_names: tuple[str, ...] = ()
        self.step_images = 0
        self.epoch_took = self.validation_took = self.checkpoint_took = 0.0
        self.validations = 0
        self.rollbacks = 0
        self._stop_asked = False
        self.tuning_only = False
        self._saved: dict[str, Any] | None = None
        self._saved_at = time.monotonic()
        self._trained_epoch = 0
        self.losses = EpochLosses()

    @property
    def steps(self) -> int:
        return self.order.steps

    # --- the loop: see events.Event for its pseudocode ------------------------------------------------------------

    def train(self) -> None:
        """Train to the end.

        Raises:
            Interrupted: SIGTERM on any rank; the state is saved.
            BadInput: specification or data are wrong.
            TrainerError: the training failed.
        """
        self._saved = self._read()
        self._setup_train()
        finished = self._restore()
        if self.tuning and self.storage:
            self.storage.write("tuning.json", self.tuning.model_dump_json(by_alias=True, indent=1).encode())
            self.storage.upload("tuning.json")
        if self.storage:
            self.storage.check_space(sum(p.numel() for p in unwrap_model(self.model).parameters()))
        # Only now: before there is anything to save, a signal may end the process as it does.
        handlers = {s: signal.signal(s, self._ask_to_stop) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            self.train_time_start = time.time()
            self.carried_seconds = self.clocks.timing().trained_seconds
            self.startup_took = self.clocks.begin(self.beginning, time.time())
            self._trained_epoch = min(self.epoch, self.epochs - 1)
            emit(Event.TRAIN_START, self.listeners, self)
            self.clock.start()
            if finished and self.storage:
                self.storage.upload_all()
            while not finished:
                try:
                    self._train_epochs()
                    finished = True
                except Diverged:
                    self._roll_back()
            emit(Event.TRAIN_END, self.listeners, self)
            if self.storage:
                self.storage.close(interrupted=False)
        except Interrupted:
            if self.storage:
                self.storage.close(interrupted=True)
            raise
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self.test_loader.close()

    def measure(self) -> TuningReport:
        """Make the trials of spec.tuning for what is fastest, and train nothing.

        Raises:
            BadInput: specification or data are wrong.
        """
        self.tuning_only = True
        self._setup_train()
        self.test_loader.close()
        assert self.tuning is not None
        return self.tuning

    def _ask_to_stop(self, *_: Any) -> None:
        self._stop_asked = True

    def bench(self, seconds: float) -> Measurement:
        """Measure what the whole training is made of, in about so many seconds, and keep nothing.

        Raises:
            BadInput: specification or data are wrong, or it does not fit into memory.
        """
        self._setup_train()
        self._restore()
        try:
            self.startup_took = self.clocks.begin(self.beginning, time.time())
            emit(Event.BENCH_START, self.listeners, self)
            return Bench(self, seconds).run()
        finally:
            self.test_loader.close()

    def _train_epochs(self) -> None:
        batches = self.batches(self.epoch, self.step)
        self._saved_at = time.monotonic()
        stop = False
        while not stop and self.epoch < self.epochs:
            self._train_epoch(batches)
            self.end_epoch()
            stop = self._stopping_early()
            done = stop or self.epoch + 1 >= self.epochs
            self.epoch, self.step, self.epochs_done = self.epoch + 1, 0, self.epoch + 1
            self.losses.reset()
            emit(Event.EPOCH_END, self.listeners, self)
            # A new best is saved at once: what is reported as the result must be there. Only rank 0 knows, and writes.
            best = self.fitness is not None and self.fitness == self.best_fitness
            if done or best or self.epoch % self.run.spec.checkpoint.every_epochs == 0:
                self.save(finished=done)
        self.votes.drain()

    def _train_epoch(self, batches: Iterator[dict[str, Any]]) -> None:
        began = time.perf_counter()
        self._trained_epoch = self.epoch
        self._between(TimePart.OTHER)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the scheduler is stepped before the optimizer, as upstream does it
            self.scheduler.step()
        self._model_train()
        self.optimizer.zero_grad()
        emit(Event.EPOCH_START, self.listeners, self)
        boundary = self.step  # steps whose gradients are in the weights
        while self.step < self.steps:
            self._agree(boundary)
            boundary = self.next_step(batches, boundary)
        self.collect(wait=True)
        self.epoch_took = time.perf_counter() - began

    def next_step(self, batches: Iterator[dict[str, Any]], boundary: int) -> int:
        """Train the next step; the number of steps whose gradients are in the weights then."""
        self._warm_up()
        update = self.step + 1 - boundary >= self.accumulate or self.step + 1 == self.steps
        self._train_step(batches, update)
        self.step += 1
        self._end_step()
        emit(Event.STEP_END, self.listeners, self)
        return self.step if update else boundary

    def _agree(self, boundary: int) -> None:
        """Cast this step's votes, and do what the last step's came to: on every rank in the same step."""
        due = self.world.is_main and time.monotonic() - self._saved_at >= self.run.spec.checkpoint.every_seconds
        stop, save, diverged = self.votes.exchange(stop=self._stop_asked, save=due, diverged=self.losses.diverged)
        if diverged:
            raise Diverged
        if stop or save:
            self._check_finite()
            # The weights have not changed since the last optimizer step: that is where a resume takes up.
            self.save(step=boundary)
            if stop:
                at = f"epoch {self.epoch + 1}, step {boundary} of {self.steps}"
                raise Interrupted(Reason.INTERRUPTED, f"stopped by a signal and saved at {at}")

    def _check_finite(self) -> None:
        """Before anything is saved or validated. All ranks must call it.

        Raises:
            Diverged: a loss of this epoch or a weight is not finite, on any rank.
        """
        self.losses.look()
        norms = torch._foreach_norm([p.detach() for p in unwrap_model(self.model).parameters()])
        finite = bool(torch.isfinite(torch.stack([n.float() for n in norms])).all()) and not self.losses.diverged
        if self.world.sum([float(not finite)])[0]:
            raise Diverged

    def _warm_up(self) -> None:
        """Accumulation, learning rate and momentum rise over the first epochs, as upstream has it."""
        warm = self._get_warmup_iterations(self.steps)
        now = self.step + self.steps * self.epoch
        if not warm or now > warm:
            return
        self.accumulate = max(1, round(float(np.interp(now, [0, warm], [1, self.nominal_accumulate]))))
        for group in self.optimizer.param_groups:
            start = self.args.warmup_bias_lr * self.rate_scale if group.get("param_group") == "bias" else 0.0
            group["lr"] = float(np.interp(now, [0, warm], [start, group["initial_lr"] * self.lf(self.epoch)]))
            if "momentum" in group:
                momentum = (self.args.warmup_momentum, self.args.momentum)
                group["momentum"] = float(np.interp(now, [0, warm], momentum))

    def _train_step(self, batches: Iterator[dict[str, Any]], update: bool) -> None:
        sizes = self.order.sizes(self.step, self.world.rank, self.world.world_size)
        self.clock.mark(TimePart.OTHER)
        for i, size in enumerate(sizes):
            self._train_micro_batch(next(batches), size, reduce=update and i + 1 == len(sizes))
        self.step_images = sum(sizes)
        if update:
            self.optimizer_step()

    def _train_micro_batch(self, batch: dict[str, Any], size: int, *, reduce: bool) -> None:
        self.clock.mark(TimePart.DATA_WAIT)
        if self.args.multi_scale:
            random.seed(f"{self.args.seed}/{self.epoch}/{self.step}")  # the same size on every rank
        batch = self.to_device(batch)
        self.clock.mark(TimePart.H2D)
        model = self.model
        alone = not isinstance(model, DistributedDataParallel)
        # The forward pass arms DDP's reducer, so it must be inside, too.
        with contextlib.nullcontext() if alone or reduce else model.no_sync():
            predictions = self.predict(batch)
            self.clock.mark(TimePart.FORWARD)
            loss, items = self.losses_of(batch, predictions)
            # Ultralytics' loss is a mean times the micro-batch: a sum over images, whatever the shards. DDP takes the
            # mean over ranks, hence the factor.
            self.loss = loss.sum() * (self.world.world_size if size else 0)
            self.loss_items = items
            self.losses.add(items, size)
            self.clock.mark(TimePart.LOSS)
            self._reductions.clear()
            self.scaler.scale(self.loss).backward()  # type: ignore[no-untyped-call]
            if self._reductions:
                self.clock.mark(TimePart.BACKWARD, at=self._reductions[-1])
                self.clock.mark(TimePart.ALL_REDUCE)
                self.clock.reduced(self._reductions[0], self._reduced or self._reductions[-1])
            else:
                self.clock.mark(TimePart.BACKWARD)

    def optimizer_step(self) -> None:
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), max_norm=10.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.clock.mark(TimePart.OPTIMIZER)
        self.ema.update(self.model)
        self.clock.mark(TimePart.EMA)

    # --- the end of an epoch --------------------------------------------------------------------------------------

    def end_epoch(self) -> None:
        criterion = unwrap_model(self.model).criterion
        if hasattr(criterion, "update"):
            criterion.update()
        self.lr = {f"lr/pg{i}": group["lr"] for i, group in enumerate(self.optimizer.param_groups)}
        self.ema.update_attr(self.model, include=["yaml", "nc", "args", "names", "stride", "class_weights"])
        last = self.epoch + 1 >= self.epochs
        self._check_finite()
        losses = self.losses.mean(self.world)
        self._between(TimePart.OTHER)
        self.fitness = None  # an epoch that is not validated is no best one
        if self.args.val or last or self.stopper.possible_stop:
            self._validate()
        if self.world.is_main:
            self.rows.append(
                {
                    "epoch": self.epoch + 1,
                    "time": sum(self.clocks.training.values()) + self.clocks.validation,
                    **{f"train/{name}": value for name, value in losses.items()},
                    **(self.metrics or {}),
                    **self.lr,
                }
            )

    def _validate(self) -> None:
        emit(Event.VALIDATION_START, self.listeners, self)
        began = time.perf_counter()
        if not self.loss_names:
            self.loss_names = tuple(self.loss_items)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.metrics, fitness = self.validate()
        self.fitness = None if fitness is None else float(fitness)
        if self.world.is_main:
            self.map50 = self.metrics["metrics/mAP50(B)"]
            self.map = self.metrics["metrics/mAP50-95(B)"]
            if self.best_fitness == fitness or not self.best_metrics:
                self.best_fitness = self.fitness
                self.best_metrics = {"map50": self.map50, "map": self.map}
        self.validation_took = time.perf_counter() - began
        self.validations += 1
        self._between(TimePart.VALIDATION)
        emit(Event.VALIDATION_END, self.listeners, self)

    def _stopping_early(self) -> bool:
        """Rank 0's verdict on every rank."""
        stop = self.world.is_main and bool(self.stopper(self.epoch + 1, self.fitness))
        return self.world.sum([float(stop)])[0] > 0

    # --- time -----------------------------------------------------------------------------------------------------

    def _end_step(self) -> None:
        images = min(self.order.batch, self.order.samples - (self.step - 1) * self.order.batch)
        self.clock.end(TimePart.OTHER, epoch=self.epoch, step=self.step - 1, images=images)
        self.collect()

    def _between(self, phase: TimePart) -> None:
        """What has happened since the last step, or since the last call, was this phase."""
        self.clock.end(phase, epoch=self._trained_epoch, step=self.step)
        self.collect(wait=True)

    def collect(self, wait: bool = False) -> None:
        """Take over the spans whose times are known by now."""
        for span in self.clock.completed(wait):
            self.clocks.add(span)
            for listener in self.listeners:
                listener.on_span(span)

    def remaining_seconds(self, rate: float | None) -> float | None:
        """Expected time to the end at `rate` images per second; none before there is a rate."""
        if not rate:
            return None
        epochs: int = self.epochs - self.epoch
        images = epochs * self.order.samples - min(self.step * self.order.batch, self.order.samples)
        pauses: float = self.clocks.validation / self.validations if self.validations and self.args.val else 0.0
        return float(images) / rate + epochs * (pauses + self.checkpoint_took)

    def _where(self) -> str:
        return f"epoch {self.epoch + 1}, step {self.step} of {self.steps}"

    def _rates(self) -> str:
        return ", ".join(f"{group['lr']:.4g}" for group in self.optimizer.param_groups)

    def gpu(self) -> tuple[int, float]:
        """(most bytes allocated so far, share of the time in which it computes now)."""
        return gpu.memory_peak(self.device), gpu.utilization(self.device)

    # --- state ----------------------------------------------------------------------------------------------------

    def save(self, step: int | None = None, finished: bool = False) -> None:
        """Save state, and at an epoch's end weights; rank 0 alone writes."""
        began = time.perf_counter()
        step = self.step if step is None else step
        # Before it is captured: the clocks in it must know all that has happened.
        self._between(TimePart.OTHER)
        if self.storage:
            files = self._files() if step == 0 else {}
            captured = train_state.capture(self, step, finished)
            self.storage.save(captured, epoch=self.epoch, step=step, files=files, last=finished)
        self._saved_at = time.monotonic()
        self.checkpoint_took = time.perf_counter() - began
        emit(Event.CHECKPOINT, self.listeners, self)
        self._between(TimePart.CHECKPOINT)

    def _files(self) -> dict[str, Any]:
        """Name -> writer of the files for people, at the end of an epoch."""
        content = train_state.stock_checkpoint(self)

        def weights(file: BinaryIO) -> None:
            torch.save(content, file)

        files = {"weights/last.pt": weights}
        if self.fitness is not None and self.fitness == self.best_fitness:
            files["weights/best.pt"] = weights
        if self.args.save_period > 0 and self.epoch % self.args.save_period == 0:
            files[f"weights/epoch{self.epoch}.pt"] = weights
        table = train_state.results_csv(self.rows).encode()
        return {**files, "results.csv": lambda file: file.write(table)}

    def tune(self) -> None:
        tuning = self.run.spec.tuning
        if self.tuning_only or (tuning.mode == "Auto" and self._saved is None):
            emit(Event.TUNING_START, self.listeners, self)
            tuner = Tuner(self, tuning.max_seconds, whole_job=not self.tuning_only)
            self.choice, self.tuning = tuner.run(self.choice)
        elif tuning.mode == "Auto" and self._saved is not None:
            self.choice = Choice(**self._saved["choice"])

    def _read(self) -> dict[str, Any] | None:
        """The newest whole checkpoint, on all ranks."""
        data = None
        if self.storage:
            data, faults = self.storage.newest()
            for fault in faults:
                self.warn(fault)
        data = self.world.broadcast_bytes(data)
        if data is None:
            return None
        saved = decode(data)
        train_state.check_fingerprint(saved, self)
        return saved

    def _restore(self) -> bool:
        """Take up from the checkpoint that was read; True where the run was finished already."""
        self._initial_rates = list(self.scheduler.base_lrs)
        beginning = io.BytesIO()
        torch.save({"format": FORMAT, **train_state.capture(self, 0, False)}, beginning)
        self._beginning = beginning.getvalue()
        saved, self._saved = self._saved, None
        if saved is None:
            return False
        train_state.apply(self, saved)
        return bool(saved["finished"])

    def _roll_back(self) -> None:
        """Go back to the newest checkpoint, with half the learning rate. All ranks call it in the same step.

        Raises:
            TrainerError: it has happened too often, or there is nothing to go back to.
        """
        where = f"the loss is not finite at {self._where()}, learning rate {self._rates()}"
        self.votes.drain()
        self.collect(wait=True)
        rollbacks = self.rollbacks + 1
        if rollbacks > MAX_ROLLBACKS:
            raise TrainerError(
                Reason.NON_FINITE_LOSS, f"{where}; {MAX_ROLLBACKS} rollbacks with a lower one did not help"
            )
        clocks = self.clocks
        self.losses = EpochLosses()
        data, _ = self.storage.newest() if self.storage else (None, [])
        train_state.apply(self, decode(self.world.broadcast_bytes(data) or self._beginning))
        self.clocks, self.rollbacks = clocks, rollbacks
        self.scale_rates()
        self.warn(
            f"{where}: back to epoch {self.epoch + 1}, step {self.step}, with {self.rate_scale:g} times the learning rate "
            f"(rollback {rollbacks} of {MAX_ROLLBACKS})"
        )
        self._between(TimePart.CHECKPOINT)

    @property
    def rate_scale(self) -> float:
        """What rollbacks have made of the learning rate."""
        return 0.5**self.rollbacks

    def scale_rates(self) -> None:
        """Let the optimizer and its schedule know about rollbacks."""
        self.scheduler.base_lrs = [rate * self.rate_scale for rate in self._initial_rates]
        for rate, group in zip(self.scheduler.base_lrs, self.optimizer.param_groups, strict=True):
            group["initial_lr"] = rate
