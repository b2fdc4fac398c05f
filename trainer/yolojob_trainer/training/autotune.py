"""`spec.tuning.mode: Auto`: short trials before the first epoch choose what changes the speed and not the result.

One setting after the other is tried on the job's own network, data and batch, with weights that stand still; what is
clearly faster is kept and the next one is tried on top of it. What the user has set is not touched. A setting that changes
the loss is refused, and so is one whose gain over the rest of the job is less than what it costs.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from yolojob.api.trainer_report import Trial, TuningReport
from yolojob_trainer.data.sample_order import SampleOrder
from yolojob_trainer.model import precision
from yolojob_trainer.system.process import available_cpus

if TYPE_CHECKING:
    from yolojob_trainer.training.setup import Pipeline

LOSS_STEPS = 2
"""Global batches whose loss is compared; they also warm up."""
TIMED_STEPS, TIMED_SECONDS = 8, 4.0
"""A trial ends after so many steps, or after so long, but not before three."""
LOSS_TOLERANCE = 0.02
"""Relative change of the loss that a setting may cause: five times bfloat16's own rounding, 2^-8."""
GAIN = 0.03
"""A setting must be faster by this part, twice, or it is taken for noise."""
WORTH = 0.1
"""Trials may cost this part of what the job is expected to take."""
COMPILE_SECONDS = 240.0
"""Compiling cannot be stopped, and takes so long for a small network on two cores."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a run is trained with, as far as the result does not depend on it."""

    amp: str
    """fp32, bf16 or fp16."""
    channels_last: bool
    micro_batches: int = 1
    """Parts in which a rank computes its share of the global batch."""
    cache: bool | str = False
    workers: int = 0
    """Loader processes."""
    prefetch: int = 4
    """Batches that each loader process is ahead."""
    compile: bool = False

    def words(self) -> dict[str, str]:
        """For people, under the names of spec.train where it has them."""
        return {name: str(value).lower() for name, value in dataclasses.asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class Measured:
    step_seconds: float
    """Median, mean over ranks."""
    loss: float
    """Sum over the first batches and all ranks."""


class Tuner:
    """Tries settings of one pipeline. All ranks call `run` together and come to the same choice."""

    def __init__(self, pipeline: Pipeline, seconds: float, *, whole_job: bool) -> None:
        """
        Args:
            pipeline: what is to be trained; its network is where it will be trained, and not wrapped.
            seconds: time for all trials.
            whole_job: whether a gain must pay back within the job; a mere measurement says what is fastest.
        """
        self._pipeline = pipeline
        self._deadline = time.monotonic() + seconds
        self._whole_job = whole_job
        self._trials: list[Trial] = []
        self._raw: torch.nn.Module = pipeline.model

    def run(self, first: Choice) -> tuple[Choice, TuningReport]:
        """Try, beginning with what is the default."""
        buffers = {name: value.clone() for name, value in self._raw.named_buffers()}
        best = first
        reference = self._try(first)
        if isinstance(reference, str):
            raise RuntimeError(f"the first trial failed: {reference}")
        fastest = reference
        self._note("default", fastest, "kept")
        for words, candidate in self._candidates(first):
            proposed = dataclasses.replace(best, **candidate)
            if why := self._not_worth(fastest, best, candidate):
                self._trials.append(Trial(settings=words, verdict=f"not tried: {why}"))
                continue
            measured = self._try(proposed)
            if isinstance(measured, str):
                self._trials.append(Trial(settings=words, verdict=f"failed: {measured}"))
                continue
            verdict = self._verdict(measured, fastest, reference)
            if verdict == "kept" and not isinstance(again := self._try(best), str):
                # A noisy neighbour may have gone meanwhile: the best so far gets another chance.
                fastest = min(fastest, again, key=lambda m: m.step_seconds)
                verdict = self._verdict(measured, fastest, reference)
            self._note(words, measured, verdict)
            if verdict == "kept":
                best, fastest = proposed, measured
        self._configure(best)
        for name, value in self._raw.named_buffers():
            value.copy_(buffers[name])
        return best, TuningReport(chosen=best.words(), trials=self._trials)

    def _candidates(self, first: Choice) -> Iterator[tuple[str, dict[str, Any]]]:
        """(words, changes) of what the user has left open, one setting at a time."""
        pipeline, settings = self._pipeline, self._pipeline.run.spec.train
        if settings.amp == "auto":
            for amp in precision.supported(pipeline.device):
                if amp != first.amp:
                    yield f"amp={amp}", {"amp": amp}
        if settings.channels_last is None:
            yield f"channels_last={str(not first.channels_last).lower()}", {"channels_last": not first.channels_last}
        if min(pipeline.order.sizes(0, pipeline.world.rank, pipeline.world.world_size)) >= 4:
            yield "micro_batches=2", {"micro_batches": 2}
        if settings.cache is None:
            yield "cache=ram", {"cache": "ram"}
        if settings.workers is None:
            most = max(available_cpus() // pipeline.world.local_world_size, 1)
            for workers in (0, 1, 2, 4, 8, 16):
                if workers != first.workers and workers <= most:
                    yield f"workers={workers}", {"workers": workers}
            yield "prefetch=8", {"prefetch": 8}
        if settings.compile is None:
            yield "compile=true", {"compile": True}

    def _not_worth(self, fastest: Measured, best: Choice, candidate: dict[str, Any]) -> str | None:
        """Why a trial is not worth its time; the same on all ranks, by rank 0's clock."""
        order, epochs = self._pipeline.order, self._pipeline.args.epochs
        job = fastest.step_seconds * order.steps * epochs
        trial = fastest.step_seconds * (LOSS_STEPS + TIMED_STEPS)
        left = self._deadline - time.monotonic()
        reasons = [
            (left < trial, "spec.tuning.maxSeconds is over"),
            (self._whole_job and trial > WORTH * job, f"the job takes about {job:.0f} s"),
            (
                candidate.get("compile") is True and left < COMPILE_SECONDS,
                f"compiling takes minutes, and spec.tuning.maxSeconds leaves {max(left, 0):.0f} s",
            ),
            (
                candidate.get("compile") is True and self._whole_job and WORTH * job < COMPILE_SECONDS,
                f"compiling takes minutes, the job about {job:.0f} s",
            ),
            (
                candidate.get("prefetch") is not None and best.workers == 0,
                "there are no loader processes",
            ),
        ]
        votes = self._pipeline.world.sum([float(holds and self._pipeline.world.is_main) for holds, _ in reasons])
        return next((words for vote, (_, words) in zip(votes, reasons, strict=True) if vote), None)

    def _verdict(self, measured: Measured, fastest: Measured, reference: Measured) -> str:
        change = abs(measured.loss - reference.loss) / max(abs(reference.loss), 1e-9)
        if not change <= LOSS_TOLERANCE:
            return f"refused: changes the loss by {change:.1%}"
        gain = 1 - measured.step_seconds / fastest.step_seconds
        return "kept" if gain > GAIN else "slower" if gain < -GAIN else "no gain"

    def _note(self, words: str, measured: Measured, verdict: str) -> None:
        batch = self._pipeline.order.batch
        self._trials.append(
            Trial(
                settings=words,
                images_per_second=round(batch / measured.step_seconds, 1),
                loss=round(measured.loss, 4) if math.isfinite(measured.loss) else None,
                verdict=verdict,
            )
        )

    def _try(self, choice: Choice) -> Measured | str:
        """Measure, or say what failed; on all ranks alike."""
        found: Measured | None = None
        why = ""
        try:
            self._configure(choice)
            found = self._measure()
        except (RuntimeError, ValueError, OSError) as error:  # out of memory, no compiler, no shared memory
            why = " ".join(str(error).split())[:200] or type(error).__name__
            if self._pipeline.device.type == "cuda":
                torch.cuda.empty_cache()
        world = self._pipeline.world
        failed, seconds, loss = world.sum(
            [float(found is None), found.step_seconds if found else 0.0, found.loss if found else 0.0]
        )
        if failed:
            return why or "on another worker"
        return Measured(step_seconds=seconds / world.world_size, loss=loss)

    def _configure(self, choice: Choice) -> None:
        self._pipeline.model = self._raw
        self._pipeline.configure(choice)

    def _measure(self) -> Measured:
        pipeline = self._pipeline
        pipeline._model_train()
        batches = pipeline.batches(0, 0)
        loss = 0.0
        seconds: list[float] = []
        began = time.monotonic()
        while len(seconds) < TIMED_STEPS + LOSS_STEPS:
            step = len(seconds)
            if step >= LOSS_STEPS + 3 and time.monotonic() - began > TIMED_SECONDS:
                break
            start = time.perf_counter()
            value = self._step(batches, pipeline.order, step % pipeline.order.steps)
            if pipeline.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
            if step < LOSS_STEPS:
                loss += value
            if step + 1 == LOSS_STEPS:
                began = time.monotonic()  # compiling is not part of the time
        return Measured(step_seconds=statistics.median(seconds[LOSS_STEPS:]), loss=loss)

    def _step(self, batches: Iterator[dict[str, Any]], order: SampleOrder, step: int) -> float:
        """One global batch's share of this rank, without a change to the weights; the sum of its losses."""
        pipeline, total = self._pipeline, 0.0
        for size in order.sizes(step, pipeline.world.rank, pipeline.world.world_size):
            loss, _ = pipeline.forward(next(batches))
            if size:
                total += float(loss.detach().sum())
            loss.sum().backward()  # type: ignore[no-untyped-call]
        for parameter in self._raw.parameters():
            parameter.grad = None
        return total
