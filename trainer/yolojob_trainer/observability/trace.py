"""Writes the time line: a JSON line for each span of each rank, and a Chrome trace of a few steps."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from yolojob_trainer.checkpoint.run_folder import TRACE, RunFolder
from yolojob_trainer.distributed.world import World
from yolojob_trainer.training.callbacks import Callback, TrainerView
from yolojob_trainer.training.span import Span

FLUSH_INTERVAL_SECONDS = 2.0
"""Time between two writes of rank 0's lines. A run that is killed loses up to this much of them, and of the other ranks
everything since the last checkpoint."""
WAIT_STEPS, WARMUP_STEPS = 2, 2
"""Steps before the recorded ones: the first steps allocate memory, and the profiler's own first steps are slow."""
PHASES_THREAD = 1_000_000
"""Number of the Chrome trace's row for the phases; no thread has this number."""


def span_record(span: Span) -> dict[str, Any]:
    """Return the JSON content of a span.

    Returns:
        epoch, step (both from 0), start (seconds since 1970), seconds by phase; for a step its images; and if gradients
        were reduced, the total time of that.
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

    def __init__(self, world: World, run_folder: RunFolder | None, attempt: int) -> None:
        self._world = world
        self._run_folder = run_folder
        self._attempt = attempt
        self._lines: dict[int, list[str]] = {}
        """By epoch."""
        self._flushed = time.monotonic()

    def on_train_start(self, trainer: TrainerView) -> None:
        times, state = trainer.startup_times, trainer.state
        seconds = {"rendezvous": times.rendezvous, "staging": times.staging, "startup": trainer.startup_seconds}
        record = {
            "epoch": state.epoch,
            "step": state.step,
            "start": round(times.started, 6),
            "seconds": {name: round(value, 6) for name, value in seconds.items()},
        }
        self._add(state.epoch, record)

    def on_span(self, span: Span) -> None:
        self._add(span.epoch, span_record(span))

    def on_step_end(self, trainer: TrainerView) -> None:  # noqa: ARG002
        if self._run_folder and time.monotonic() - self._flushed >= FLUSH_INTERVAL_SECONDS:
            self._write(0, self._take_lines())

    def on_checkpoint(self, trainer: TrainerView) -> None:  # noqa: ARG002
        self._exchange()

    def on_train_end(self, trainer: TrainerView) -> None:  # noqa: ARG002
        self._exchange()

    def _add(self, epoch: int, record: dict[str, Any]) -> None:
        self._lines.setdefault(epoch, []).append(json.dumps(record, separators=(",", ":")))

    def _take_lines(self) -> dict[int, str]:
        """Return the lines since the last call by epoch."""
        text = {epoch: "\n".join(lines) + "\n" for epoch, lines in self._lines.items()}
        self._lines = {}
        self._flushed = time.monotonic()
        return text

    def _exchange(self) -> None:
        """Gather the lines of all ranks on rank 0, and write them. All ranks must call it."""
        gathered = self._world.gather(json.dumps(self._take_lines()).encode())
        for rank, data in enumerate(gathered):
            names = self._write(rank, {int(epoch): text for epoch, text in json.loads(data).items()})
            for name in names:
                assert self._run_folder is not None
                self._run_folder.upload(name)

    def _write(self, rank: int, text: dict[int, str]) -> list[str]:
        """Append a rank's lines to its files; return the names of the files."""
        assert self._run_folder is not None
        names = []
        for epoch, lines in text.items():
            name = f"{TRACE}/rank-{rank}/epoch-{epoch + 1:05d}.attempt-{self._attempt}.jsonl"
            self._run_folder.append(name, lines.encode())
            names.append(name)
        return names


class ChromeTrace(Callback):
    """Profiles a few steps into trace/rank-R.chrome.json.gz, for ui.perfetto.dev or chrome://tracing."""

    def __init__(self, world: World, run_folder: RunFolder | None, scratch: Path, steps: int) -> None:
        """
        Args:
            world: all ranks profile the same steps.
            run_folder: only on rank 0.
            scratch: a folder for temporary files.
            steps: number of steps to record.
        """
        self._world = world
        self._run_folder = run_folder
        self._file = scratch / "chrome.json"
        self._steps_left = WAIT_STEPS + WARMUP_STEPS + steps
        self._spans: list[Span] = []
        activities = [ProfilerActivity.CPU]
        if world.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        steps_to_record = schedule(wait=WAIT_STEPS, warmup=WARMUP_STEPS, active=steps, repeat=1)
        self._profile: Any = profile(activities=activities, schedule=steps_to_record)

    def on_train_start(self, trainer: TrainerView) -> None:  # noqa: ARG002
        self._profile.start()

    def on_span(self, span: Span) -> None:
        if self._steps_left:
            self._spans.append(span)

    def on_step_end(self, trainer: TrainerView) -> None:
        if not self._steps_left:
            return
        self._steps_left -= 1
        if self._steps_left:
            self._profile.step()
            return
        if self._world.device.type == "cuda":
            torch.cuda.synchronize()
        trainer.collect_spans(wait=True)
        self._finish()

    def on_train_end(self, trainer: TrainerView) -> None:  # noqa: ARG002
        if self._steps_left:  # the training has fewer steps
            self._steps_left = 0
            self._finish()

    def _finish(self) -> None:
        self._profile.stop()
        content: dict[str, Any] = {"traceEvents": []}
        if self._profile.profiler is not None:  # None if the training ended before the first recorded step
            self._profile.export_chrome_trace(str(self._file))
            content = json.loads(self._file.read_text())
            content["traceEvents"] += phase_events(self._spans, content.get("baseTimeNanoseconds", 0), self._world.rank)
            self._file.unlink()
        self._profile, self._spans = None, []
        for rank, data in enumerate(self._world.gather(gzip.compress(json.dumps(content).encode(), compresslevel=1))):
            assert self._run_folder is not None
            name = f"{TRACE}/rank-{rank}.chrome.json.gz"
            self._run_folder.write(name, data)
            self._run_folder.upload(name)


def phase_events(spans: list[Span], base: int, rank: int) -> list[dict[str, Any]]:
    """Return the phases as a separate row of a Chrome trace.

    Args:
        spans: of the time line.
        base: origin of the trace's times, in nanoseconds since 1970.
        rank: for the name of the row.

    Returns:
        Complete events of https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU, times in
        microseconds.
    """
    row = {"pid": f"rank {rank}", "tid": PHASES_THREAD}
    events: list[dict[str, Any]] = [{**row, "ph": "M", "name": "thread_name", "args": {"name": "phases"}}]
    for span in spans:
        start = span.start * 1e6 - base / 1e3
        for phase, seconds in span.parts:
            args = {"epoch": span.epoch + 1, "step": span.step + 1, "images": span.images}
            events.append(
                {**row, "ph": "X", "cat": "phase", "name": phase.value, "ts": start, "dur": seconds * 1e6, "args": args}
            )
            start += seconds * 1e6
    return events
