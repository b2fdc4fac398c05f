"""Counts the work of a job: steps, optimizer steps, validations, checkpoints. Pure; the trainer does the same."""

from __future__ import annotations

from dataclasses import dataclass

from yolojob.api.spec import YoloTrainingJobSpec

CLOSE_MOSAIC, WARMUP_EPOCHS, NOMINAL_BATCH = 10, 3.0, 64
"""Ultralytics' defaults of close_mosaic, warmup_epochs and nbs; a test compares them with the package."""
MIXES = {"mosaic": 1.0, "mixup": 0.0, "cutmix": 0.0, "copy_paste": 0.0}
"""Augmentations that close_mosaic switches off, with their defaults."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The work of a whole job, without early stopping."""

    epochs: int
    steps: int
    """Steps per epoch."""
    images: int
    """Images per epoch."""
    mosaic_epochs: int
    """Number of first epochs, in which samples are mixed from several images."""
    updates: int
    """Optimizer steps of the whole job."""
    validations: int
    saves: int


def count_workload(spec: YoloTrainingJobSpec, images: int) -> Workload:
    """Count the work of a job with this many training images.

    A new best model is saved immediately, also between two checkpoints. How often that happens cannot be predicted, so
    it is not counted.
    """
    train, checkpoint = spec.train, spec.checkpoint
    steps = -(-images // train.batch)
    last = train.close_mosaic if train.close_mosaic is not None else CLOSE_MOSAIC
    mixes = any(
        (getattr(train, name) if getattr(train, name) is not None else default) for name, default in MIXES.items()
    )
    return Workload(
        epochs=train.epochs,
        steps=steps,
        images=images,
        mosaic_epochs=max(train.epochs - last, 0) if mixes else 0,
        updates=_updates(spec, steps),
        validations=train.validations(0),
        saves=-(-train.epochs // checkpoint.every_epochs),
    )


def _updates(spec: YoloTrainingJobSpec, steps: int) -> int:
    """Optimizer steps: fewer than steps if gradients accumulate; accumulation grows gradually in the first epochs."""
    train = spec.train
    nominal = max(round((train.nbs or NOMINAL_BATCH) / train.batch), 1)
    nominal = min(nominal, steps * train.epochs)
    warmup = train.warmup_epochs if train.warmup_epochs is not None else WARMUP_EPOCHS
    warm = round(min(warmup, max(train.epochs - 1, 0)) * steps)
    warm_epochs = min(-(-(warm + 1) // steps), train.epochs) if warm else 0
    updates, accumulate = 0, nominal
    for epoch in range(warm_epochs):
        boundary = 0
        for step in range(steps):
            now = step + steps * epoch
            if now <= warm:
                accumulate = max(1, round(1 + (nominal - 1) * now / warm))
            if step + 1 - boundary >= accumulate or step + 1 == steps:
                updates, boundary = updates + 1, step + 1
    return updates + (train.epochs - warm_epochs) * -(-steps // nominal)
