"""Defines the report of a trainer: its state, progress and timing, and its result or failure."""

from __future__ import annotations

import enum
from typing import Annotated

from pydantic import Field

from yolojob.api.base import LenientModel
from yolojob.api.fields import Count
from yolojob.api.measurement import DataFacts, Measurement, ModelProfile
from yolojob.api.status import Progress, Result, Seconds, Timing


class TrainerState(enum.StrEnum):
    """The current activity of a trainer, or its end."""

    STARTING = "Starting"
    STAGING = "Staging"
    CHECKING = "Checking"
    TUNING = "Tuning"
    MEASURING = "Measuring"
    TRAINING = "Training"
    VALIDATING = "Validating"
    SAVING = "Saving"
    SUCCEEDED = "Succeeded"
    INTERRUPTED = "Interrupted"
    FAILED = "Failed"


class Failure(LenientModel):
    """Why a worker failed."""

    rank: Count | None = None
    """Global rank that failed; None if the launcher reports the failure."""
    reason: Annotated[str, Field(pattern="^[A-Z][A-Za-z]*$", max_length=64)]
    """One word in CamelCase, as in a condition."""
    message: str
    """The message of the rank's error."""
    exit_code: int


class Trial(LenientModel):
    """One trial before the training."""

    settings: str
    """The changed settings: "amp=bf16"."""
    images_per_second: Seconds | None = None
    loss: float | None = None
    """Loss of the same images with the same weights in every trial."""
    verdict: str
    """kept, slower, no gain, or why the setting was rejected or not tried."""


class TuningReport(LenientModel):
    """The settings that spec.tuning has chosen, and the trials."""

    chosen: dict[str, str]
    trials: list[Trial]


class Report(LenientModel):
    """Served by global rank 0 at /progress; the last report becomes the termination message."""

    state: Annotated[TrainerState, Field(strict=False)] = TrainerState.STARTING
    world_size: Count = 1
    device: str = ""
    """Name of the device for people: "NVIDIA H200", "CPU, 2 threads"."""
    precision: str = ""
    """fp32, bf16 or fp16."""
    progress: Progress = Field(default_factory=Progress)
    timing: Timing = Field(default_factory=Timing)
    carried_seconds: Seconds = 0.0
    """Seconds of `timing` that come from earlier attempts, with the checkpoint."""
    resumed_from: str | None = None
    """Where this attempt resumed: "epoch 3, image 128"."""
    warnings: list[str] = Field(default_factory=list)
    tuning: TuningReport | None = None
    measurement: Measurement | None = None
    """The result of a bench."""
    model_profile: ModelProfile | None = None
    """The result of an inspection, together with `data`."""
    data: DataFacts | None = None
    result: Result | None = None
    failure: Failure | None = None
