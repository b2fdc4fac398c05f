"""The events of the training loop, in order, and the callbacks that receive them."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Protocol

from yolojob.api.trainer_report import TuningReport
from yolojob_trainer.training.losses import EpochLosses
from yolojob_trainer.training.span import Span
from yolojob_trainer.training.time_account import StartupTimes
from yolojob_trainer.training.train_state import TrainState


class TrainerView(Protocol):
    """The part of a trainer that callbacks read. A callback must not change the trainer."""

    state: TrainState
    startup_times: StartupTimes
    losses: EpochLosses
    epochs: int
    """Epochs of the whole run."""
    epochs_done: int
    step_images: int
    """Images of this rank in the last step."""
    startup_seconds: float
    epoch_seconds: float
    """Time of the last epoch without its validation."""
    validation_seconds: float
    """Time of the last validation."""
    checkpoint_seconds: float
    """Time of the last checkpoint."""
    carried_seconds: float
    """Training time of earlier attempts."""
    resumed_from: str | None
    tuning: TuningReport | None

    @property
    def steps(self) -> int:
        """Steps of an epoch."""

    def facts(self) -> dict[str, str]:
        """Return a description of device and precision."""

    def remaining_seconds(self, rate: float | None) -> float | None:
        """Return the expected time to the end at `rate` images per second."""

    def gpu_usage(self) -> tuple[int, float]:
        """Return (peak of the allocated bytes, utilization from 0 to 1)."""

    def validation_images(self) -> Sequence[str]:
        """Return the files of the images of the validation."""

    @property
    def image_size(self) -> int:
        """Side of a training image in pixels."""

    def collect_spans(self, wait: bool = False) -> None:
        """Deliver the completed spans to the callbacks."""


class TrainEvent(enum.StrEnum):
    """The events of the loop. The loop with its events::

    # <BENCH_START> in a bench, which runs steps, a validation and a checkpoint, and no training
    # <TUNING_START> where spec.tuning asks for trials, in a new run
    # <TRAIN_START>
    while epoch < epochs:
        # <EPOCH_START>
        while step < steps:
            agree with all ranks on stopping and saving
            for microbatch in this rank's shards of the global batch:
                wait for the microbatch; move it to the device
                forward; loss; backward (gradients are reduced in the last one of an optimizer step)
            if an optimizer step is due (after `nbs` images, and at the end of the epoch):
                clip; optimizer step; EMA
            # <STEP_END>
            # <CHECKPOINT> if one is due, at an optimizer step
        # <VALIDATION_START>
        validate the EMA, shared among all ranks
        # <VALIDATION_END>
        # <EPOCH_END>
        # <CHECKPOINT> if one is due, and at the end
    # <TRAINED> unless the run was already finished; its time is accounted for
    # <TRAIN_END>
    """

    BENCH_START = "on_bench_start"
    TUNING_START = "on_tuning_start"
    TRAIN_START = "on_train_start"
    EPOCH_START = "on_epoch_start"
    STEP_END = "on_step_end"
    CHECKPOINT = "on_checkpoint"
    VALIDATION_START = "on_validation_start"
    VALIDATION_END = "on_validation_end"
    EPOCH_END = "on_epoch_end"
    TRAINED = "on_trained"
    TRAIN_END = "on_train_end"


class Callback:
    """Receives the events of the loop; a subclass overrides the methods that it needs."""

    def on_bench_start(self, trainer: TrainerView) -> None: ...
    def on_tuning_start(self, trainer: TrainerView) -> None: ...
    def on_train_start(self, trainer: TrainerView) -> None: ...
    def on_epoch_start(self, trainer: TrainerView) -> None: ...
    def on_step_end(self, trainer: TrainerView) -> None: ...
    def on_checkpoint(self, trainer: TrainerView) -> None: ...
    def on_validation_start(self, trainer: TrainerView) -> None: ...
    def on_validation_end(self, trainer: TrainerView) -> None: ...
    def on_epoch_end(self, trainer: TrainerView) -> None: ...
    def on_trained(self, trainer: TrainerView) -> None: ...
    def on_train_end(self, trainer: TrainerView) -> None: ...

    def on_span(self, span: Span) -> None:
        """Called when a span of the time line is complete; on a GPU that is a few steps later."""


def emit(event: TrainEvent, callbacks: list[Callback], trainer: TrainerView) -> None:
    """Call the event's method on every callback, in order."""
    for callback in callbacks:
        getattr(callback, event.value)(trainer)
