"""What the trainer tells the world: the report at /progress and in the termination message, and the metrics."""

from __future__ import annotations

import threading
import time
from collections import deque
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolojob.api.constants import TERMINATION_LIMIT, ExitCode
from yolojob.api.measurement import DataFacts, Measurement, ModelProfile
from yolojob.api.status import Result
from yolojob.api.time_parts import TimePart
from yolojob.api.trainer_report import Report, TrainerState, TuningReport
from yolojob_trainer.observability.metrics import Metrics
from yolojob_trainer.training.callbacks import Callback

if TYPE_CHECKING:
    from yolojob_trainer.training.phase_clock import Span
    from yolojob_trainer.training.trainer import Trainer

WINDOW_SECONDS = 20.0
"""Throughput is a mean over this much of the newest training time."""

UPDATE_EVERY = 0.2
"""Seconds between two updates of the report within an epoch; steps may be shorter than an update is worth."""

NOT_SAVED = "not saved: "


class Throughput:
    """Images per second over a sliding window of training time, without validation and checkpoints."""

    def __init__(self, window: float = WINDOW_SECONDS) -> None:
        self.window = window
        self._steps: deque[tuple[float, int]] = deque()
        self._seconds = 0.0
        self._images = 0

    def add(self, seconds: float, images: int) -> None:
        """A step of so many seconds that trained so many images."""
        if seconds < 0 or images < 0:
            raise ValueError(f"a step has neither {seconds} seconds nor {images} images")
        self._steps.append((seconds, images))
        self._seconds += seconds
        self._images += images
        while len(self._steps) > 1 and self._seconds - self._steps[0][0] >= self.window:
            old_seconds, old_images = self._steps.popleft()
            self._seconds -= old_seconds
            self._images -= old_images

    @property
    def rate(self) -> float | None:
        """Images per second; none before the first step."""
        return self._images / self._seconds if self._seconds > 0 else None


class Reporter(Callback):
    """Keeps the report. The training thread writes, the server's threads read copies."""

    def __init__(self, metrics: Metrics, *, world_size: int) -> None:
        self.metrics = metrics
        self.report = Report(world_size=world_size)
        self.throughput = Throughput()
        self._lock = threading.Lock()
        self._updated = 0.0
        self._started: float | None = None
        self._at_work = TrainerState.TRAINING

    def snapshot(self) -> dict[str, Any]:
        with self._lock:
            return self.report.model_dump(mode="json", by_alias=True, exclude_none=True)

    def say(self, state: TrainerState) -> None:
        with self._lock:
            self.report.state = state

    def warn(self, message: str) -> None:
        with self._lock:
            if message not in self.report.warnings:
                self.report.warnings = [*self.report.warnings, message][-8:]

    def staging(self, there: int, total: int | None) -> None:
        """So many bytes of the data set are there; called from several threads."""
        now = time.monotonic()
        with self._lock:
            if there and there != total and now - self._updated < UPDATE_EVERY:
                return
            self._updated = now
            self.report.progress.staged_bytes, self.report.progress.dataset_bytes = there, total
            self.report.progress.updated_at = datetime.now(UTC)
        self.metrics.staged_bytes.set(there)
        if total is not None:
            self.metrics.dataset_bytes.set(total)

    def not_saved(self, message: str) -> None:
        """Something could not be saved or uploaded; the training goes on. Called from several threads."""
        self.metrics.checkpoint_failures.inc()
        with self._lock:
            self.report.progress.checkpoint_failures = (self.report.progress.checkpoint_failures or 0) + 1
            # Of a storage that fails for hours, the newest word is enough.
            others = [w for w in self.report.warnings if not w.startswith(NOT_SAVED)]
            self.report.warnings = [*others, NOT_SAVED + message][-8:]

    def on_bench_start(self, trainer: Trainer) -> None:
        facts = trainer.facts()
        with self._lock:
            self.report.state = self._at_work = TrainerState.MEASURING
            self.report.device, self.report.precision = facts["device"], facts["precision"]

    def on_tuning_start(self, trainer: Trainer) -> None:  # noqa: ARG002
        self.say(TrainerState.TUNING)

    def on_train_start(self, trainer: Trainer) -> None:
        self.metrics.rendezvous_seconds.set(trainer.beginning.rendezvous)
        self.metrics.staging_seconds.set(trainer.beginning.staging)
        self.metrics.startup_seconds.set(trainer.startup_took)
        self.metrics.epochs_target.set(trainer.epochs)
        self.metrics.epoch_steps.set(trainer.steps)
        self.metrics.describe(trainer.facts())
        with self._lock:
            self.report.device = trainer.facts()["device"]
            self.report.precision = trainer.facts()["precision"]
            self.report.resumed_from = trainer.resumed_from
            self.report.tuning = trainer.tuning
            self.report.carried_seconds = round(trainer.carried_seconds, 3)
        self._started = trainer.beginning.started
        self._update(trainer, self._at_work)

    def on_step_end(self, trainer: Trainer) -> None:
        self.metrics.images.inc(trainer.step_images)
        self.metrics.steps.inc()
        if time.monotonic() - self._updated >= UPDATE_EVERY:
            self._update(trainer, self._at_work)

    def on_span(self, span: Span) -> None:
        if span.images:
            self.throughput.add(span.duration, span.images)
            self.metrics.observe_step(span)

    def on_validation_start(self, trainer: Trainer) -> None:
        self._update(trainer, TrainerState.VALIDATING)

    def on_validation_end(self, trainer: Trainer) -> None:
        self.metrics.validation_seconds.observe(trainer.validation_took)
        self._update(trainer, self._at_work)

    def on_checkpoint(self, trainer: Trainer) -> None:
        self.metrics.checkpoint_seconds.observe(trainer.checkpoint_took)
        self._update(trainer, self._at_work)

    def on_epoch_end(self, trainer: Trainer) -> None:
        self.metrics.epoch_seconds.observe(trainer.epoch_took)
        self._update(trainer, self._at_work)

    def on_train_end(self, trainer: Trainer) -> None:
        self._update(trainer, TrainerState.SAVING)  # uploads may be under way
        with self._lock:
            self.report.progress.eta = None

    def _update(self, trainer: Trainer, state: TrainerState) -> None:
        self._updated = time.monotonic()
        now = datetime.now(UTC)
        rate = self.throughput.rate
        with self._lock:
            report = self.report
            report.state = state
            progress = report.progress
            progress.epoch, progress.epochs = trainer.epochs_done, trainer.epochs
            progress.step, progress.steps = trainer.step, trainer.steps
            progress.images_per_second = round(rate, 1) if rate else None
            progress.loss = trainer.losses.value
            progress.map50, progress.map = trainer.map50, trainer.map
            progress.rollbacks = trainer.rollbacks or None
            remaining = trainer.remaining_seconds(rate)
            progress.eta = now + timedelta(seconds=remaining) if remaining is not None else None
            progress.updated_at = now
            report.timing = trainer.clocks.timing()
        memory, busy = trainer.gpu()
        self.metrics.epoch.set(progress.epoch)
        self.metrics.rollbacks.set(trainer.rollbacks)
        for gauge, value in (
            (self.metrics.images_per_second, progress.images_per_second),
            (self.metrics.loss, progress.loss),
            (self.metrics.map50, progress.map50),
            (self.metrics.map, progress.map),
            (self.metrics.gpu_memory_peak, memory),
            (self.metrics.gpu_utilization, busy),
        ):
            if value is not None:
                gauge.set(value)

    def conclude(self, **found: TuningReport | Measurement | ModelProfile | DataFacts) -> None:
        """Nothing was to be trained: what was found stands in these fields of the report."""
        with self._lock:
            self.report = self.report.model_copy(update={"state": TrainerState.SUCCEEDED, **found})

    def succeed(self, result: Result) -> None:
        with self._lock:
            self.report.state = TrainerState.SUCCEEDED
            self.report.result = result
            timing = self.report.timing
            if self._started is not None:  # the last uploads, and the good-bye to the other ranks
                own = timing.trained_seconds - self.report.carried_seconds
                rest = max(time.time() - self._started - own, 0.0)
                last = TimePart.OTHER.value
                timing.training_seconds[last] = round(timing.training_seconds.get(last, 0.0) + rest, 3)


def write_termination_message(report: Report, path: Path) -> None:
    """Leave the report where Kubernetes picks it up, within its limit.

    Several local ranks share the file. A rank that merely lost its peer never overwrites what the culprit wrote.
    """
    survivor = report.failure is not None and report.failure.exit_code in (ExitCode.PEER_LOST, ExitCode.INTERRUPTED)
    try:
        if survivor and path.exists() and path.stat().st_size:
            return
        path.write_text(shorten(report))
    except OSError as error:
        print(f"The report could not be left at {path}: {error}", flush=True)  # noqa: T201 - the pod's log is all there is


def shorten(report: Report, limit: int = TERMINATION_LIMIT) -> str:
    """The report as JSON of at most `limit` bytes: trials go first, then warnings, then the end of the failure's words."""
    report = report.model_copy(deep=True)
    text = report.model_dump_json(by_alias=True, exclude_none=True)
    while len(text.encode()) > limit:
        if report.tuning and report.tuning.trials:
            report.tuning.trials = report.tuning.trials[:-1]
        elif report.warnings:
            report.warnings = report.warnings[1:]
        elif report.failure and len(report.failure.message) > 16:
            excess = len(text.encode()) - limit
            keep = max(len(report.failure.message) - excess - 8, 8)
            report.failure.message = report.failure.message[:keep].rstrip() + " …"
        else:
            return Report(state=report.state).model_dump_json(by_alias=True, exclude_none=True)
        text = report.model_dump_json(by_alias=True, exclude_none=True)
    return text
