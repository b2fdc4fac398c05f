"""The training itself: Ultralytics' model, data, loss and validator in a loop of our own.

Why a loop of our own: upstream's has no boundaries between the phases of a step, reduces gradients in every micro-step,
waits for the GPU in every step, counts local devices instead of workers, and writes checkpoints in place.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from ultralytics.utils.torch_utils import unwrap_model

from yolojob.run import Run
from yolojob_trainer import state
from yolojob_trainer.checkpoint import CheckpointStore, decode, write_atomically
from yolojob_trainer.clock import Clocks, Phase
from yolojob_trainer.dataset import MicroBatches, loader
from yolojob_trainer.errors import BadInput, Interrupted, TrainerError
from yolojob_trainer.events import Callback, Event, emit
from yolojob_trainer.losses import EpochLosses
from yolojob_trainer.pipeline import NetworkSource, Pipeline
from yolojob_trainer.world import Votes, World


class Trainer(Pipeline):
    """Trains one run on one rank; all ranks call `train` together."""

    def __init__(
        self,
        run: Run,
        world: World,
        *,
        data: Path,
        model: NetworkSource,
        output: Path,
        scratch: Path,
        cache: Path,
        callbacks: list[Callback],
        warn: Any,
    ) -> None:
        """
        Args:
            run: what is trained.
            world: this process among all, connected.
            data: data file, see `yolojob_trainer.data`.
            model: network description and starting weights, see `yolojob_trainer.architecture`.
            output: folder of the run; only rank 0 touches it.
            scratch: a folder for what Ultralytics writes on the other ranks.
            cache: folder of this node for label caches.
            callbacks: listeners.
            warn: called with every warning for the user.
        """
        super().__init__(run, world, data=data, model=model, save_dir=output if world.is_main else scratch, cache=cache)
        self.output, self.listeners, self.warn = output, callbacks, warn
        self.store = CheckpointStore(output / "checkpoints", run.spec.checkpoint.keep)
        self.clocks = Clocks()
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
        self._images_of_steps: list[int] = []
        self._timed: list[tuple[dict[Phase, float], int]] = []
        self._stop_asked = False
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
        self._setup_train()
        finished = self._restore()
        self._check_space()
        # Only now: before there is anything to save, a signal may end the process as it does.
        handlers = {s: signal.signal(s, self._ask_to_stop) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            self.train_time_start = time.time()
            emit(Event.TRAIN_START, self.listeners, self)
            if not finished:
                self._train_epochs()
            emit(Event.TRAIN_END, self.listeners, self)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self.test_loader.close()

    def _ask_to_stop(self, *_: Any) -> None:
        self._stop_asked = True

    def _train_epochs(self) -> None:
        batches = loader(
            self.samples,
            MicroBatches(
                self.order,
                rank=self.world.rank,
                world_size=self.world.world_size,
                epoch=self.epoch,
                step=self.step,
            ),
            workers=self.args.workers,
            pin_memory=self.device.type == "cuda",
        )
        self._saved_at = time.monotonic()
        stop = False
        while not stop and self.epoch < self.epochs:
            self._train_epoch(batches)
            self._end_epoch()
            stop = self._stopping_early()
            done = stop or self.epoch + 1 >= self.epochs
            self.epoch, self.step, self.epochs_done = self.epoch + 1, 0, self.epoch + 1
            self.losses.reset()
            emit(Event.EPOCH_END, self.listeners, self)
            # A new best is saved at once: what is reported as the result must be there. Only rank 0 knows, and writes.
            best = self.fitness is not None and self.fitness == self.best_fitness
            if done or best or self.epoch % self.run.spec.checkpoint.every_epochs == 0:
                self._save(finished=done)
        self.votes.drain()

    def _train_epoch(self, batches: Iterator[dict[str, Any]]) -> None:
        began = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the scheduler is stepped before the optimizer, as upstream does it
            self.scheduler.step()
        self._model_train()
        self.optimizer.zero_grad()
        emit(Event.EPOCH_START, self.listeners, self)
        boundary = self.step  # steps whose gradients are in the weights
        self.clock.start()
        while self.step < self.steps:
            self._agree(boundary)
            self._warm_up()
            update = self.step + 1 - boundary >= self.accumulate or self.step + 1 == self.steps
            self._train_step(batches, update)
            self.step += 1
            if update:
                boundary = self.step
            self.clock.end_step()
            self._collect()
            emit(Event.STEP_END, self.listeners, self)
        self._collect(wait=True)
        self.losses.look()
        self.epoch_took = time.perf_counter() - began

    def _agree(self, boundary: int) -> None:
        """Cast this step's votes, and do what the last step's came to: on every rank in the same step."""
        due = self.world.is_main and time.monotonic() - self._saved_at >= self.run.spec.checkpoint.every_seconds
        stop, save, diverged = self.votes.exchange(stop=self._stop_asked, save=due, diverged=self.losses.diverged)
        if diverged:
            raise TrainerError(
                "NonFiniteLoss", f"the loss is not finite at {self._where()}, learning rate {self._rates()}"
            )
        if stop or save:
            self._collect(wait=True)
            # The weights have not changed since the last optimizer step: that is where a resume takes up.
            self._save(step=boundary)
            if stop:
                at = f"epoch {self.epoch + 1}, step {boundary} of {self.steps}"
                raise Interrupted("Interrupted", f"stopped by a signal and saved at {at}")
            self.clock.start()

    def _warm_up(self) -> None:
        """Accumulation, learning rate and momentum rise over the first epochs, as upstream has it."""
        warm = self._get_warmup_iterations(self.steps)
        now = self.step + self.steps * self.epoch
        if not warm or now > warm:
            return
        self.accumulate = max(1, round(float(np.interp(now, [0, warm], [1, self.nominal_accumulate]))))
        for group in self.optimizer.param_groups:
            start = self.args.warmup_bias_lr if group.get("param_group") == "bias" else 0.0
            group["lr"] = float(np.interp(now, [0, warm], [start, group["initial_lr"] * self.lf(self.epoch)]))
            if "momentum" in group:
                momentum = (self.args.warmup_momentum, self.args.momentum)
                group["momentum"] = float(np.interp(now, [0, warm], momentum))

    def _train_step(self, batches: Iterator[dict[str, Any]], update: bool) -> None:
        sizes = self.order.sizes(self.step, self.world.rank, self.world.world_size)
        for i, size in enumerate(sizes):
            self._train_micro_batch(next(batches), size, reduce=update and i + 1 == len(sizes))
        self.step_images = sum(sizes)
        self._images_of_steps.append(min(self.order.batch, self.order.samples - self.step * self.order.batch))
        if update:
            self.optimizer_step()

    def _train_micro_batch(self, batch: dict[str, Any], size: int, *, reduce: bool) -> None:
        self.clock.mark(Phase.DATA_WAIT)
        if self.args.multi_scale:
            random.seed(f"{self.args.seed}/{self.epoch}/{self.step}")  # the same size on every rank
        batch = self.preprocess_batch(batch)
        if self.args.channels_last is not False:
            batch["img"] = batch["img"].contiguous(memory_format=torch.channels_last)
        self.clock.mark(Phase.H2D)
        model = self.model
        alone = not isinstance(model, DistributedDataParallel)
        # The forward pass arms DDP's reducer, so it must be inside, too.
        with contextlib.nullcontext() if alone or reduce else model.no_sync():
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                predictions = model(batch["img"])
            self.clock.mark(Phase.FORWARD)
            loss, items = unwrap_model(model).loss(batch, _float(predictions))
            # Ultralytics' loss is a mean times the micro-batch: a sum over images, whatever the shards. DDP takes the
            # mean over ranks, hence the factor.
            self.loss = loss.sum() * (self.world.world_size if size else 0)
            self.loss_items = items
            self.losses.add(items, size)
            self.clock.mark(Phase.LOSS)
            self._gradients_ready = None
            self.scaler.scale(self.loss).backward()
            if self._gradients_ready is not None:
                self.clock.mark(Phase.BACKWARD, at=self._gradients_ready)
                self.clock.mark(Phase.ALL_REDUCE)
            else:
                self.clock.mark(Phase.BACKWARD)

    def optimizer_step(self) -> None:
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), max_norm=10.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.clock.mark(Phase.OPTIMIZER)
        self.ema.update(self.model)
        self.clock.mark(Phase.EMA)

    # --- the end of an epoch --------------------------------------------------------------------------------------

    def _end_epoch(self) -> None:
        criterion = unwrap_model(self.model).criterion
        if hasattr(criterion, "update"):
            criterion.update()
        self.lr = {f"lr/pg{i}": group["lr"] for i, group in enumerate(self.optimizer.param_groups)}
        self.ema.update_attr(self.model, include=["yaml", "nc", "args", "names", "stride", "class_weights"])
        last = self.epoch + 1 >= self.epochs
        losses = self.losses.mean(self.world)
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
        self.clocks.validation += self.validation_took
        self.validations += 1
        emit(Event.VALIDATION_END, self.listeners, self)

    def _stopping_early(self) -> bool:
        """Rank 0's verdict on every rank."""
        stop = self.world.is_main and bool(self.stopper(self.epoch + 1, self.fitness))
        return self.world.sum([float(stop)])[0] > 0

    # --- time -----------------------------------------------------------------------------------------------------

    def _collect(self, wait: bool = False) -> None:
        """Take over the steps whose times are known by now."""
        for seconds in self.clock.completed(wait):
            self.clocks.add_step(seconds)
            self._timed.append((seconds, self._images_of_steps.pop(0)))

    def timed_steps(self) -> list[tuple[dict[Phase, float], int]]:
        """(seconds by phase, images of the whole job) of the steps that became known since the last call."""
        steps, self._timed = self._timed, []
        return steps

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

    def gpu_memory_peak(self) -> int | None:
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None

    # --- state ----------------------------------------------------------------------------------------------------

    def _save(self, *, step: int | None = None, finished: bool = False) -> None:
        """Save state and weights; rank 0 alone writes."""
        began = time.perf_counter()
        if self.world.is_main:
            try:
                self._write(self.step if step is None else step, finished)
            except OSError as error:
                self._could_not_save(error, finished)
        self._saved_at = time.monotonic()
        self.checkpoint_took = time.perf_counter() - began
        self.clocks.checkpoint += self.checkpoint_took
        emit(Event.CHECKPOINT, self.listeners, self)

    def _could_not_save(self, error: OSError, finished: bool) -> None:
        message = f"no checkpoint at {self._where()}: {error.strerror or error} ({self.output})"
        for listener in self.listeners:
            if metrics := getattr(listener, "metrics", None):
                metrics.checkpoint_failures.inc()
        self.warn(message)
        if finished:
            raise TrainerError("StorageFailed", f"the trained weights could not be saved: {message}") from error

    def _write(self, step: int, finished: bool) -> None:
        weights = self.output / "weights"
        if step == 0:  # at an epoch's end there are new weights for people
            content = state.stock_checkpoint(self)
            write_atomically(weights / "last.pt", lambda file: torch.save(content, file))
            if self.fitness is not None and self.fitness == self.best_fitness:
                write_atomically(weights / "best.pt", lambda file: torch.save(content, file))
            if self.args.save_period > 0 and self.epoch % self.args.save_period == 0:
                write_atomically(weights / f"epoch{self.epoch}.pt", lambda file: torch.save(content, file))
            write_atomically(
                self.output / "results.csv", lambda file: file.write(state.results_csv(self.rows).encode())
            )
        self.store.save(state.capture(self, step, finished), epoch=self.epoch, step=step)

    def _restore(self) -> bool:
        """Take up from the newest whole checkpoint; True where the run was finished already."""
        data = None
        if self.world.is_main:
            data, faults = self.store.newest()
            for fault in faults:
                self.warn(fault)
        data = self.world.broadcast_bytes(data)
        if data is None:
            return False
        saved = decode(data)
        state.apply(self, saved)
        return bool(saved["finished"])

    def _check_space(self) -> None:
        """Whether what will be saved fits: weights, gradients' moments and EMA in fp32 for each checkpoint."""
        if not self.world.is_main:
            return
        parameters = sum(p.numel() for p in unwrap_model(self.model).parameters())
        needed = parameters * (16 * (self.run.spec.checkpoint.keep + 1) + 2 * 3) + (4 << 20)
        free = shutil.disk_usage(self.output).free + sum(p.stat().st_size for p in self.store.paths())
        if free < needed:
            raise BadInput(
                "NoSpace",
                f"{self.output} has {free / 2**20:.0f} MiB left, and checkpoints and weights need about "
                f"{needed / 2**20:.0f} MiB: free some, or choose another spec.storage.uri",
            )


def _float(value: Any) -> Any:
    """Predictions in single precision at least, in which losses are computed."""
    if isinstance(value, torch.Tensor):
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    if isinstance(value, dict):
        return {key: _float(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_float(child) for child in value)
    return value
