"""The report in which a running trainer tells the operator what it does, how far it is, and how it ended."""

from __future__ import annotations

import enum
from typing import Annotated

from pydantic import Field

from yolojob.api.base import LenientModel
from yolojob.api.measurement import DataFacts, Measurement, ModelProfile
from yolojob.api.status import Count, Progress, Result, Seconds, Timing


class TrainerState(enum.StrEnum):
    """What a trainer is doing."""

    STARTING = "Starting"
    STAGING = "Staging"
    TUNING = "Tuning"
    MEASURING = "Measuring"
    TRAINING = "Training"
    VALIDATING = "Validating"
    SAVING = "Saving"
    SUCCEEDED = "Succeeded"
    INTERRUPTED = "Interrupted"
    FAILED = "Failed"


class Failure(LenientModel):
    """Why a worker ended."""

    rank: Count | None = None
    """Global rank that said so; none where the launcher speaks."""
    reason: Annotated[str, Field(pattern="^[A-Z][A-Za-z]*$")]
    """One word in CamelCase, as in a condition."""
    message: str
    """The rank's own words."""
    exit_code: int


class Trial(LenientModel):
    """One setting that was tried before the training."""

    settings: str
    """What was changed: "amp=bf16"."""
    images_per_second: Seconds | None = None
    loss: float | None = None
    """Of the same images and weights in every trial."""
    verdict: str
    """kept, slower, no gain, or why it was refused or not tried."""


class TuningReport(LenientModel):
    """What spec.tuning has chosen, and why."""

    chosen: dict[str, str]
    trials: list[Trial]


class Report(LenientModel):
    """What global rank 0 serves at /progress, and what stays in the termination message."""

    state: Annotated[TrainerState, Field(strict=False)] = TrainerState.STARTING
    world_size: Count = 1
    device: str = ""
    """What it trains on, for people: "NVIDIA H200", "CPU, 2 threads"."""
    precision: str = ""
    """fp32, bf16 or fp16."""
    progress: Progress = Field(default_factory=Progress)
    timing: Timing = Field(default_factory=Timing)
    carried_seconds: Seconds = 0.0
    """The part of `timing` that this attempt took over with a checkpoint of those before it."""
    resumed_from: str | None = None
    """Where this attempt took up: "epoch 3, image 128"."""
    warnings: list[str] = Field(default_factory=list)
    tuning: TuningReport | None = None
    measurement: Measurement | None = None
    """Of a bench."""
    model_profile: ModelProfile | None = None
    """Of an inspection, as is `data`."""
    data: DataFacts | None = None
    result: Result | None = None
    failure: Failure | None = None
