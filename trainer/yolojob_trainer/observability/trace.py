"""Where every second went, on paper: a line of JSON for each span of each rank, and a Chrome trace of a few steps."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from yolojob_trainer.checkpoint.run_folder import TRACE, Storage
from yolojob_trainer.distributed.world import World
from yolojob_trainer.training.callbacks import Callback
from yolojob_trainer.training.phase_clock import Span

if TYPE_CHECKING:
    from yolojob_trainer.training.trainer import Trainer

FLUSH_SECONDS = 2.0
"""A run that is killed loses so much of rank 0's lines, and of the others' what came after the last checkpoint."""
WAIT, WARMUP = 2, 2
"""Steps before those of the Chrome trace: the first ones allocate, and the profiler's own first ones are slow."""
PHASES_THREAD = 1_000_000
"""Row of the Chrome trace for the phases; no thread has this number."""


def line(span: Span) -> dict[str, Any]:
    """A span as it is written.

    Returns:
        epoch, step (both from 0), start (seconds since 1970), seconds by phase; for a step its images, and where gradients
        were reduced, how long that took in all.
    """
    out: dict[str, Any] = {"epoch": span.epoch, "step": span.step, "start": round(span.start, 6)}
    if span.images:
        out["images"] = span.images
    out["seconds"] = {phase.value: round(value, 6) for phase, value in span.seconds.items()}
    if span.reduction is not None:
        out["allReduceWithOverlap"] = round(span.reduction, 6)
    return out


class Trace(Callback):
    """Writes trace/rank-R/epoch-E.attempt-A.jsonl below the run's folder, for all ranks through rank 0."""

    def __init__(self, world: World, storage: Storage | None, attempt: int) -> None:
        self._world = world
        self._storage = storage
        self._attempt = attempt
        self._lines: dict[int, list[str]] = {}
        """By epoch."""
        self._flushed = time.monotonic()

    def on_train_start(self, trainer: Trainer) -> None:
        beginning = trainer.beginning
        took = {"rendezvous": beginning.rendezvous, "staging": beginning.staging, "startup": trainer.startup_took}
        seconds = {name: round(value, 6) for name, value in took.items()}
        words = {"epoch": trainer.epoch, "step": trainer.step, "start": round(beginning.started, 6), "seconds": seconds}
        self._lines.setdefault(trainer.epoch, []).append(json.dumps(words, separators=(",", ":")))

    def on_span(self, span: Span) -> None:
        self._lines.setdefault(span.epoch, []).append(json.dumps(line(span), separators=(",", ":")))

    def on_step_end(self, trainer: Trainer) -> None:  # noqa: ARG002
        if self._storage and time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self._write(0, self._taken())

    def on_checkpoint(self, trainer: Trainer) -> None:  # noqa: ARG002
        self._exchange()

    def on_train_end(self, trainer: Trainer) -> None:  # noqa: ARG002
        self._exchange()

    def _taken(self) -> dict[int, str]:
        text = {epoch: "\n".join(lines) + "\n" for epoch, lines in self._lines.items()}
        self._lines = {}
        self._flushed = time.monotonic()
        return text

    def _exchange(self) -> None:
        """All ranks at once: what they have goes through rank 0."""
        gathered = self._world.gather(json.dumps(self._taken()).encode())
        for rank, data in enumerate(gathered):
            names = self._write(rank, {int(epoch): text for epoch, text in json.loads(data).items()})
            for name in names:
                assert self._storage is not None
                self._storage.upload(name)

    def _write(self, rank: int, text: dict[int, str]) -> list[str]:
        assert self._storage is not None
        names = []
        for epoch, lines in text.items():
            name = f"{TRACE}/rank-{rank}/epoch-{epoch + 1:05d}.attempt-{self._attempt}.jsonl"
            self._storage.append(name, lines.encode())
            names.append(name)
        return names


class ChromeTrace(Callback):
    """Profiles a few steps into trace/rank-R.chrome.json.gz, for ui.perfetto.dev or chrome://tracing."""

    def __init__(self, world: World, storage: Storage | None, scratch: Path, steps: int) -> None:
        """
        Args:
            world: all ranks profile the same steps.
            storage: rank 0's.
            scratch: a folder for temporary files.
            steps: how many steps are recorded.
        """
        self._world = world
        self._storage = storage
        self._file = scratch / "chrome.json"
        self._left = WAIT + WARMUP + steps
        self._spans: list[Span] = []
        activities = [ProfilerActivity.CPU]
        if world.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        plan = schedule(wait=WAIT, warmup=WARMUP, active=steps, repeat=1)
        self._profile: Any = profile(activities=activities, schedule=plan)

    def on_train_start(self, trainer: Trainer) -> None:  # noqa: ARG002
        self._profile.start()

    def on_span(self, span: Span) -> None:
        if self._left:
            self._spans.append(span)

    def on_step_end(self, trainer: Trainer) -> None:
        if not self._left:
            return
        self._left -= 1
        if self._left:
            self._profile.step()
            return
        if self._world.device.type == "cuda":
            torch.cuda.synchronize()
        trainer.collect(wait=True)
        self._finish()

    def on_train_end(self, trainer: Trainer) -> None:  # noqa: ARG002
        if self._left:  # the training was shorter
            self._left = 0
            self._finish()

    def _finish(self) -> None:
        self._profile.stop()
        content: dict[str, Any] = {"traceEvents": []}
        if self._profile.profiler is not None:  # none where the training ended before the first recorded step
            self._profile.export_chrome_trace(str(self._file))
            content = json.loads(self._file.read_text())
            content["traceEvents"] += phase_events(self._spans, content.get("baseTimeNanoseconds", 0), self._world.rank)
            self._file.unlink()
        self._profile, self._spans = None, []
        for rank, data in enumerate(self._world.gather(gzip.compress(json.dumps(content).encode(), compresslevel=1))):
            assert self._storage is not None
            name = f"{TRACE}/rank-{rank}.chrome.json.gz"
            self._storage.write(name, data)
            self._storage.upload(name)


def phase_events(spans: list[Span], base: int, rank: int) -> list[dict[str, Any]]:
    """The phases as a row of their own.

    Args:
        spans: of the time line.
        base: nanoseconds since 1970 from which the trace counts.
        rank: for the name of the row.

    Returns:
        Complete events of https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU, times in
        microseconds.
    """
    row = {"pid": f"rank {rank}", "tid": PHASES_THREAD}
    events: list[dict[str, Any]] = [{**row, "ph": "M", "name": "thread_name", "args": {"name": "phases"}}]
    for span in spans:
        at = span.start * 1e6 - base / 1e3
        for phase, seconds in span.parts:
            args = {"epoch": span.epoch + 1, "step": span.step + 1, "images": span.images}
            events.append(
                {**row, "ph": "X", "cat": "phase", "name": phase.value, "ts": at, "dur": seconds * 1e6, "args": args}
            )
            at += seconds * 1e6
    return events
