"""What happens in a training, in order, and who listens."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from yolojob_trainer.training.phase_clock import Span
    from yolojob_trainer.training.trainer import Trainer


class Event(enum.StrEnum):
    """The events of the loop. The loop itself, with its events::

    # <BENCH_START> in a bench, which makes steps, a validation and a checkpoint, and no training
    # <TUNING_START> where spec.tuning asks for trials, in a new run
    # <TRAIN_START>
    while epoch < epochs:
        # <EPOCH_START>
        while step < steps:
            agree with all ranks on stopping and saving
            for micro_batch in this rank's shards of the global batch:
                wait for the micro-batch; move it to the device
                forward; loss; backward (gradients are reduced in the last one of an optimizer step)
            if an optimizer step is due (after `nbs` images, and at the end of the epoch):
                clip; optimizer step; EMA
            # <STEP_END>
            # <CHECKPOINT> if it is time, at an optimizer step
        # <VALIDATION_START>
        validate the EMA, shared among all ranks
        # <VALIDATION_END>
        # <EPOCH_END>
        # <CHECKPOINT> if it is time, and at the end
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
    TRAIN_END = "on_train_end"


class Callback:
    """Listens to the loop; overrides what it wants to hear. A callback reads the trainer and changes nothing in it."""

    def on_bench_start(self, trainer: Trainer) -> None: ...
    def on_tuning_start(self, trainer: Trainer) -> None: ...
    def on_train_start(self, trainer: Trainer) -> None: ...
    def on_epoch_start(self, trainer: Trainer) -> None: ...
    def on_step_end(self, trainer: Trainer) -> None: ...
    def on_checkpoint(self, trainer: Trainer) -> None: ...
    def on_validation_start(self, trainer: Trainer) -> None: ...
    def on_validation_end(self, trainer: Trainer) -> None: ...
    def on_epoch_end(self, trainer: Trainer) -> None: ...
    def on_train_end(self, trainer: Trainer) -> None: ...

    def on_span(self, span: Span) -> None:
        """A piece of the time line has become known; on a GPU that is a few steps later."""


def emit(event: Event, callbacks: list[Callback], trainer: Trainer) -> None:
    for callback in callbacks:
        getattr(callback, event.value)(trainer)
