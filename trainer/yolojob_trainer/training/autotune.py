"""`spec.tuning.mode: Auto`: chooses execution settings by short trials before the first epoch.

Execution settings change the speed of a training and not its result.

Settings are tried one after the other on the job's own network, data and batch, while the weights stay as they are. A
setting that is clearly faster is kept, and the next one is tried on top of it. Settings that the user has chosen are
not changed. A setting that changes the loss is refused, and so is one that saves less over the rest of the job than it
costs.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from yolojob.api.trainer_report import Trial, TuningReport
from yolojob_trainer.model import precision
from yolojob_trainer.system.compiler import has_c_compiler
from yolojob_trainer.system.process import available_cpus
from yolojob_trainer.training import memory
from yolojob_trainer.training.execution import ExecutionSettings
from yolojob_trainer.training.setup import TrainerSetup

LOSS_STEPS = 2
"""Global batches whose loss is compared; they also warm up."""
MIN_TIMED_STEPS, MAX_TIMED_STEPS, MAX_TIMED_SECONDS = 3, 8, 4.0
"""A trial ends after the maximum number of steps or seconds, but not before the minimum number of steps."""
LOSS_TOLERANCE = 0.02
"""Relative change of the loss that a setting may cause: five times bfloat16's own rounding, 2^-8."""
MIN_SPEEDUP = 0.03
"""Minimum relative reduction of the step time, in two measurements; less counts as noise."""
MAX_TRIAL_SHARE = 0.1
"""Maximum cost of a trial, relative to the expected duration of the job."""
COMPILE_SECONDS = 240.0
"""Compiling cannot be interrupted; it takes this long for a small network on two cores."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The result of a trial."""

    step_seconds: float
    """Median over the steps, mean over the ranks."""
    loss: float
    """Sum over the first batches and all ranks."""


class Tuner:
    """Tries settings of one trainer. All ranks call `run` together and make the same choice."""

    def __init__(self, trainer: TrainerSetup, seconds: float, *, whole_job: bool) -> None:
        """
        Args:
            trainer: its network is on its device, and not wrapped.
            seconds: time for all trials.
            whole_job: whether a gain must pay off within the job; False finds the fastest settings.
        """
        self._trainer = trainer
        self._deadline = time.monotonic() + seconds
        self._whole_job = whole_job
        self._trials: list[Trial] = []
        self._network: torch.nn.Module = trainer.model

    def run(self, first: ExecutionSettings) -> tuple[ExecutionSettings, TuningReport]:
        """Run the trials.

        Args:
            first: the default settings, which are tried first.

        Returns:
            The chosen settings, which the trainer uses from now on, and the report on all trials.
        """
        buffers = {name: value.clone() for name, value in self._network.named_buffers()}
        best = first
        reference = self._try(first)
        if isinstance(reference, str):
            raise RuntimeError(f"the first trial failed: {reference}")
        fastest = reference
        self._note("default", fastest, "kept")
        for label, candidate in self._candidates(first):
            proposed = dataclasses.replace(best, **candidate)
            if reason := self._reason_to_skip(fastest, best, candidate):
                self._trials.append(Trial(settings=label, verdict=f"not tried: {reason}"))
                continue
            measured = self._try(proposed)
            if isinstance(measured, str):
                self._trials.append(Trial(settings=label, verdict=f"failed: {measured}"))
                continue
            verdict = self._verdict(measured, fastest, reference)
            if verdict == "kept" and not isinstance(repeated := self._try(best), str):
                # Load on the machine may have changed meanwhile: the best settings so far are measured again.
                fastest = min(fastest, repeated, key=lambda m: m.step_seconds)
                verdict = self._verdict(measured, fastest, reference)
            self._note(label, measured, verdict)
            if verdict == "kept":
                best, fastest = proposed, measured
        self._configure(best)
        memory.restore(self._network, buffers)
        return best, TuningReport(chosen=best.describe(), trials=self._trials)

    def _candidates(self, first: ExecutionSettings) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (label, changes) for what the user has left open, one setting at a time."""
        trainer, settings = self._trainer, self._trainer.run.spec.train
        if settings.amp == "auto":
            for amp in precision.supported(trainer.device):
                if amp != first.amp:
                    yield f"amp={amp}", {"amp": amp}
        if settings.channels_last is None:
            yield f"channels_last={str(not first.channels_last).lower()}", {"channels_last": not first.channels_last}
        if min(trainer.order.sizes(0, trainer.world.rank, trainer.world.world_size)) >= 4:
            more = 2 * first.micro_batches
            yield f"micro_batches={more}", {"micro_batches": more}
        if settings.cache is None:
            yield "cache=ram", {"cache": "ram"}
            if trainer.device.type == "cuda":
                yield "cache=gpu", {"cache": "gpu"}
        if settings.workers is None:
            cores = max(available_cpus() // trainer.world.local_world_size, 1)
            for workers in (0, 1, 2, 4, 8, 16):
                if workers != first.workers and workers <= cores:
                    yield f"workers={workers}", {"workers": workers}
            yield "prefetch=8", {"prefetch": 8}
        if settings.compile is None and has_c_compiler():
            yield "compile=true", {"compile": True}

    def _reason_to_skip(self, fastest: Measured, best: ExecutionSettings, candidate: dict[str, Any]) -> str | None:
        """Return why a trial costs too much time, or None; by rank 0's clock, so that it is the same on all ranks."""
        order, epochs = self._trainer.order, self._trainer.args.epochs
        job = fastest.step_seconds * order.steps * epochs
        trial = fastest.step_seconds * (LOSS_STEPS + MAX_TIMED_STEPS)
        left = self._deadline - time.monotonic()
        compiles = candidate.get("compile") is True
        reasons = [
            (left < trial, "spec.tuning.maxSeconds is over"),
            (self._whole_job and trial > MAX_TRIAL_SHARE * job, f"the job takes about {job:.0f} s"),
            (
                compiles and left < COMPILE_SECONDS,
                f"compiling takes minutes, and spec.tuning.maxSeconds leaves {max(left, 0):.0f} s",
            ),
            (
                compiles and self._whole_job and MAX_TRIAL_SHARE * job < COMPILE_SECONDS,
                f"compiling takes minutes, the job about {job:.0f} s",
            ),
            (
                candidate.get("prefetch") is not None and best.workers == 0,
                "there are no loader processes",
            ),
        ]
        changed = dataclasses.replace(best, **{k: v for k, v in candidate.items() if k in ("workers", "prefetch")})
        room = self._trainer.loader_limit(changed.prefetch)
        reasons.append((changed.workers > room, "shared memory has no room for the batches of so many loaders"))
        index = next((i for i, (holds, _) in enumerate(reasons) if holds), -1)
        index = round(self._trainer.world.from_main(index))
        return None if index < 0 else reasons[index][1]

    def _verdict(self, measured: Measured, fastest: Measured, reference: Measured) -> str:
        change = abs(measured.loss - reference.loss) / max(abs(reference.loss), 1e-9)
        if not change <= LOSS_TOLERANCE:
            return f"refused: changes the loss by {change:.1%}"
        gain = 1 - measured.step_seconds / fastest.step_seconds
        return "kept" if gain > MIN_SPEEDUP else "slower" if gain < -MIN_SPEEDUP else "no gain"

    def _note(self, label: str, measured: Measured, verdict: str) -> None:
        """Add a measured trial to the report."""
        batch = self._trainer.order.batch
        self._trials.append(
            Trial(
                settings=label,
                images_per_second=round(batch / measured.step_seconds, 1),
                loss=round(measured.loss, 4) if math.isfinite(measured.loss) else None,
                verdict=verdict,
            )
        )

    def _try(self, settings: ExecutionSettings) -> Measured | str:
        """Return the measurement, or why it failed; a failure on one rank is a failure on all."""
        measured: Measured | None = None
        failure = ""
        try:
            self._configure(settings)
            measured = self._measure()
        except (RuntimeError, ValueError, OSError) as error:  # out of memory, no compiler, no shared memory
            failure = " ".join(str(error).split())[:200] or type(error).__name__
            if self._trainer.device.type == "cuda":
                torch.cuda.empty_cache()
        world = self._trainer.world
        failures, seconds, loss = world.sum(
            [float(measured is None), measured.step_seconds if measured else 0.0, measured.loss if measured else 0.0]
        )
        if failures:
            return failure or "on another worker"
        return Measured(step_seconds=seconds / world.world_size, loss=loss)

    def _configure(self, settings: ExecutionSettings) -> None:
        self._trainer.set_network(self._network)
        self._trainer.configure(settings)

    def _measure(self) -> Measured:
        trainer = self._trainer
        trainer.set_train_mode()
        batches = trainer.batches(0, 0)
        loss = 0.0
        seconds: list[float] = []
        timed_since = time.monotonic()
        while len(seconds) < MAX_TIMED_STEPS + LOSS_STEPS:
            step = len(seconds)
            if step >= LOSS_STEPS + MIN_TIMED_STEPS and time.monotonic() - timed_since > MAX_TIMED_SECONDS:
                break
            start = time.perf_counter()
            step_loss = self._step(batches, step % trainer.order.steps)
            if trainer.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
            if step < LOSS_STEPS:
                loss += step_loss
            if step + 1 == LOSS_STEPS:
                timed_since = time.monotonic()  # compiling is not part of the time
        return Measured(step_seconds=statistics.median(seconds[LOSS_STEPS:]), loss=loss)

    def _step(self, batches: Iterator[dict[str, Any]], step: int) -> float:
        """Compute this rank's share of a global batch, without changing the weights; return the sum of its losses."""
        trainer, total = self._trainer, 0.0
        for size in trainer.order.sizes(step, trainer.world.rank, trainer.world.world_size):
            loss, _ = trainer.forward(next(batches))
            if size:
                weight = size / trainer.order.images(step) if trainer.task.mean_loss else 1.0
                total += float(loss.detach().sum()) * weight
            loss.sum().backward()  # type: ignore[no-untyped-call]
        for parameter in self._network.parameters():
            parameter.grad = None
        return total
