"""Keeps the progress report that is served at /progress, and updates the metrics."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from yolojob.api.measurement import DataFacts, Measurement, ModelProfile
from yolojob.api.status import Result
from yolojob.api.time_parts import TimePart
from yolojob.api.trainer_report import Report, TrainerState, TuningReport
from yolojob_trainer.observability.metrics import TrainerMetrics
from yolojob_trainer.observability.throughput import Throughput
from yolojob_trainer.training.callbacks import Callback, TrainerView
from yolojob_trainer.training.span import Span

UPDATE_INTERVAL_SECONDS = 0.2
"""Minimum time between two updates of the report within an epoch, because steps may be shorter than an update."""
MAX_WARNINGS = 8
NOT_SAVED = "not saved: "
"""Prefix of warnings about failed saves and uploads."""


class Reporter(Callback):
    """Keeps the report. The training thread writes it, and the threads of the server read copies."""

    def __init__(self, metrics: TrainerMetrics, *, world_size: int) -> None:
        self.metrics = metrics
        self.report = Report(world_size=world_size)
        self.throughput = Throughput()
        self.saved = False
        """Whether this attempt has saved a checkpoint."""
        self._lock = threading.Lock()
        self._updated = 0.0
        self._started: float | None = None
        self._working_state = TrainerState.TRAINING
        """State between validations: training or measuring."""

    def snapshot(self) -> dict[str, Any]:
        """Return the report as JSON data."""
        with self._lock:
            return self.report.model_dump(mode="json", by_alias=True, exclude_none=True)

    def set_state(self, state: TrainerState) -> None:
        with self._lock:
            self.report.state = state

    def warn(self, message: str) -> None:
        """Add a warning for the user, unless it is already in the report."""
        with self._lock:
            if message not in self.report.warnings:
                self.report.warnings = [*self.report.warnings, message][-MAX_WARNINGS:]

    def staging(self, staged: int, total: int | None) -> None:
        """Update the progress of staging; called from several threads.

        Args:
            staged: bytes of the dataset that are on this node.
            total: bytes of the dataset, if known.
        """
        now = time.monotonic()
        with self._lock:
            if staged and staged != total and now - self._updated < UPDATE_INTERVAL_SECONDS:
                return
            self._updated = now
            self.report.progress.staged_bytes, self.report.progress.dataset_bytes = staged, total
            self.report.progress.updated_at = datetime.now(UTC)
        self.metrics.staged_bytes.set(staged)
        if total is not None:
            self.metrics.dataset_bytes.set(total)

    def not_saved(self, message: str) -> None:
        """Report a failed save or upload, after which the training continues; called from several threads."""
        self.metrics.checkpoint_failures.inc()
        with self._lock:
            self.report.progress.checkpoint_failures = (self.report.progress.checkpoint_failures or 0) + 1
            # When a storage fails for hours, only the newest message is of interest.
            others = [w for w in self.report.warnings if not w.startswith(NOT_SAVED)]
            self.report.warnings = [*others, NOT_SAVED + message][-MAX_WARNINGS:]

    def on_bench_start(self, trainer: TrainerView) -> None:
        facts = trainer.facts()
        with self._lock:
            self.report.state = self._working_state = TrainerState.MEASURING
            self.report.device, self.report.precision = facts["device"], facts["precision"]

    def on_tuning_start(self, trainer: TrainerView) -> None:  # noqa: ARG002
        self.set_state(TrainerState.TUNING)

    def on_train_start(self, trainer: TrainerView) -> None:
        facts = trainer.facts()
        self.metrics.rendezvous_seconds.set(trainer.startup_times.rendezvous)
        self.metrics.staging_seconds.set(trainer.startup_times.staging)
        self.metrics.startup_seconds.set(trainer.startup_seconds)
        self.metrics.epochs_target.set(trainer.epochs)
        self.metrics.epoch_steps.set(trainer.steps)
        self.metrics.describe(facts)
        with self._lock:
            self.report.device, self.report.precision = facts["device"], facts["precision"]
            self.report.resumed_from = trainer.resumed_from
            self.report.tuning = trainer.tuning
            self.report.carried_seconds = round(trainer.carried_seconds, 3)
        self._started = trainer.startup_times.started
        self._update(trainer, self._working_state)

    def on_step_end(self, trainer: TrainerView) -> None:
        self.metrics.images.inc(trainer.step_images)
        self.metrics.steps.inc()
        if time.monotonic() - self._updated >= UPDATE_INTERVAL_SECONDS:
            self._update(trainer, self._working_state)

    def on_span(self, span: Span) -> None:
        if span.images:
            self.throughput.add(span.duration, span.images)
            self.metrics.observe_step(span)

    def on_validation_start(self, trainer: TrainerView) -> None:
        self._update(trainer, TrainerState.VALIDATING)

    def on_validation_end(self, trainer: TrainerView) -> None:
        self.metrics.validation_seconds.observe(trainer.validation_seconds)
        self._update(trainer, self._working_state)

    def on_checkpoint(self, trainer: TrainerView) -> None:
        self.saved = True
        self.metrics.checkpoint_seconds.observe(trainer.checkpoint_seconds)
        self._update(trainer, self._working_state)

    def on_epoch_end(self, trainer: TrainerView) -> None:
        self.metrics.epoch_seconds.observe(trainer.epoch_seconds)
        self._update(trainer, self._working_state)

    def on_train_end(self, trainer: TrainerView) -> None:
        self._update(trainer, TrainerState.SAVING)  # uploads may still run
        with self._lock:
            self.report.progress.eta = None

    def _update(self, trainer: TrainerView, state: TrainerState) -> None:
        self._updated = time.monotonic()
        now = datetime.now(UTC)
        rate = self.throughput.rate
        train_state = trainer.state
        with self._lock:
            report = self.report
            report.state = state
            progress = report.progress
            progress.epoch, progress.epochs = trainer.epochs_done, trainer.epochs
            progress.step, progress.steps = train_state.step, trainer.steps
            progress.images_per_second = round(rate, 1) if rate else None
            progress.loss = trainer.losses.value
            progress.set_metrics(train_state.metrics)
            progress.rollbacks = train_state.rollbacks or None
            remaining = trainer.remaining_seconds(rate)
            progress.eta = now + timedelta(seconds=remaining) if remaining is not None else None
            progress.updated_at = now
            report.timing = train_state.clocks.timing()
        for name, number in train_state.metrics.items():
            self.metrics.observe_metric(name, number)
        gpu_memory, gpu_utilization = trainer.gpu_usage()
        self.metrics.epoch.set(progress.epoch)
        self.metrics.rollbacks.set(train_state.rollbacks)
        for gauge, value in (
            (self.metrics.images_per_second, progress.images_per_second),
            (self.metrics.loss, progress.loss),
            (self.metrics.gpu_memory_peak, gpu_memory),
            (self.metrics.gpu_utilization, gpu_utilization),
        ):
            if value is not None:
                gauge.set(value)

    def conclude(self, **results: TuningReport | Measurement | ModelProfile | DataFacts) -> None:
        """Mark a process that trains nothing as succeeded, and set these fields of its report."""
        with self._lock:
            self.report = self.report.model_copy(update={"state": TrainerState.SUCCEEDED, **results})

    def succeed(self, result: Result) -> None:
        """Mark the training as succeeded."""
        with self._lock:
            self.report.state = TrainerState.SUCCEEDED
            self.report.result = result
            timing = self.report.timing
            if self._started is not None:
                # The time since the last update: the last uploads, and the shutdown of the process group.
                accounted = timing.trained_seconds - self.report.carried_seconds
                rest = max(time.time() - self._started - accounted, 0.0)
                other = TimePart.OTHER.value
                timing.training_seconds[other] = round(timing.training_seconds.get(other, 0.0) + rest, 3)
