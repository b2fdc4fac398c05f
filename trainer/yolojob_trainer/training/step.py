"""Trains single steps: warm-up, microbatches, gradient reduction, the optimizer step, and the time of each phase."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import _foreach_norm
from torch.nn.parallel import DistributedDataParallel
from ultralytics.utils.torch_utils import unwrap_model

from yolojob.api.time_parts import TimePart
from yolojob_trainer.model import precision
from yolojob_trainer.training.callbacks import Callback
from yolojob_trainer.training.losses import EpochLosses
from yolojob_trainer.training.setup import TrainerInputs, TrainerSetup


class Diverged(Exception):
    """The loss or a weight is not finite; raised on every rank in the same step."""


class StepTrainer(TrainerSetup):
    """Trains one step of the global batch on this rank."""

    def __init__(self, inputs: TrainerInputs, callbacks: list[Callback]) -> None:
        super().__init__(inputs)
        self.listeners = callbacks
        self.losses = self.new_losses()
        self.step_images = 0
        self.trained_epoch = 0
        """Epoch to which spans between steps belong."""

    def new_losses(self) -> EpochLosses:
        scales = precision.by_name(self.execution.amp) == torch.float16
        return EpochLosses(lambda: float(self.scaler.get_scale())) if scales else EpochLosses()

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return self.order.steps

    def warm_up(self) -> None:
        """Raise accumulation, learning rate and momentum over the first epochs, like upstream."""
        warmup_steps = self._get_warmup_iterations(self.steps)
        current = self.step + self.steps * self.epoch
        if not warmup_steps or current > warmup_steps:
            return
        interval = [0, warmup_steps]
        self.accumulate = max(1, round(float(np.interp(current, interval, [1, self.nominal_accumulate]))))
        for group in self.optimizer.param_groups:
            bias = group.get("param_group") == "bias"
            start = self.args.warmup_bias_lr * self.state.rate_scale if bias else 0.0
            group["lr"] = float(np.interp(current, interval, [start, group["initial_lr"] * self.lf(self.epoch)]))
            if "momentum" in group:
                momentum = (self.args.warmup_momentum, self.args.momentum)
                group["momentum"] = float(np.interp(current, interval, momentum))

    def train_step(self, batches: Iterator[dict[str, Any]], update: bool) -> None:
        """Train this rank's microbatches of the current step.

        Args:
            batches: the microbatches, beginning with the step's first one.
            update: whether an optimizer step follows.
        """
        sizes = self.order.sizes(self.step, self.world.rank, self.world.world_size)
        self.clock.mark(TimePart.OTHER)
        for i, size in enumerate(sizes):
            self._train_microbatch(next(batches), size, reduce=update and i + 1 == len(sizes))
        self.step_images = sum(sizes)
        if update:
            self.optimizer_step()

    def _train_microbatch(self, batch: dict[str, Any], size: int, *, reduce: bool) -> None:
        self.clock.mark(TimePart.DATA_WAIT)
        if self.args.multi_scale:
            random.seed(f"{self.args.seed}/{self.epoch}/{self.step}")  # the same size on every rank
        batch = self.to_device(batch)
        self.clock.mark(TimePart.H2D)
        model = self.model
        local = not isinstance(model, DistributedDataParallel)
        # The forward pass prepares DDP's reducer, so it must be inside the context, too.
        with contextlib.nullcontext() if local or reduce else model.no_sync():
            predictions = self.predict(batch)
            self.clock.mark(TimePart.FORWARD)
            loss, items = self.compute_loss(batch, predictions)
            # Ultralytics' loss is a mean times the size of the microbatch: a sum over images, independent of the
            # sharding. A classification's is the mean, which is weighted by the share of the global batch instead.
            # DDP takes the mean over ranks, hence the factor.
            weight = size / self.order.images(self.step) if self.task.mean_loss else bool(size)
            self.loss = loss.sum() * (self.world.world_size * weight)
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

    def check_finite(self) -> None:
        """Check losses and weights before anything is saved or validated. All ranks must call it.

        Raises:
            Diverged: a loss of this epoch or a weight is not finite, on any rank.
        """
        self.losses.read()
        parameters = [p.detach() for p in unwrap_model(self.model).parameters()]
        norms = _foreach_norm(parameters)  # one kernel for all parameters
        finite = bool(torch.isfinite(torch.stack([n.float() for n in norms])).all()) and not self.losses.diverged
        if self.world.any(not finite):
            raise Diverged

    # --- time -----------------------------------------------------------------------------------------------------

    def end_step(self) -> None:
        """Complete the span of the step that has just been trained."""
        images = self.order.images(self.step - 1)
        self.clock.end(TimePart.OTHER, epoch=self.epoch, step=self.step - 1, images=images)
        self.collect_spans()

    def end_span(self, phase: TimePart) -> None:
        """Attribute the time since the last step, or since the last call, to a phase."""
        self.clock.end(phase, epoch=self.trained_epoch, step=self.step)
        self.collect_spans(wait=True)

    def collect_spans(self, wait: bool = False) -> None:
        """Account for the completed spans and deliver them to the callbacks; with `wait`, wait for all ended spans."""
        for span in self.clock.completed(wait):
            self.state.clocks.add(span)
            for listener in self.listeners:
                listener.on_span(span)
