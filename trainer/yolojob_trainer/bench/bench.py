"""Measures the parts of a training in less than a minute, with the training's own loop.

With the real network, data and batch it measures steps with and without mosaic, the optimizer step, a validation and a
checkpoint. Then it measures what the prediction for other numbers of workers needs: passes of half a microbatch, the
same beside a busy second process, and the reduction of gradients. The weights change as in a training; nothing is kept.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from ultralytics.utils.torch_utils import unwrap_model

from yolojob.api.fingerprint import job_fingerprint
from yolojob.api.measurement import DataFacts, Link, Measurement, MicrobatchPass, Steps
from yolojob.api.reasons import Reason
from yolojob.api.time_parts import TimePart
from yolojob_trainer.bench import all_reduce, io_rates
from yolojob_trainer.bench.contention import ContentionProbe, first_images
from yolojob_trainer.bench.power import PowerMeter
from yolojob_trainer.errors import BadInput
from yolojob_trainer.model.profile import profile_model
from yolojob_trainer.system import host
from yolojob_trainer.training.callbacks import Callback
from yolojob_trainer.training.span import Span
from yolojob_trainer.training.trainer import Trainer

WARM_UP_STEPS = 5
"""Steps before the measurement: the first ones allocate memory and choose kernels."""
MIN_STEPS = 6
"""Minimum number of steps for a mean, independent of their duration."""
MIN_PASSES, MAX_PASSES = 4, 60
STEPS_SHARE, PASSES_SHARE, CONTENTION_SHARE, VALIDATION_SHARE = 0.45, 0.15, 0.15, 0.1
"""Shares of the time for training steps, for passes of other sizes, for those beside the second process, and for each
of two validations."""
UPDATE_PARTS = (TimePart.OPTIMIZER, TimePart.EMA)
"""Parts of a step that occur only with an optimizer step."""


class StepRecorder(Callback):
    """Keeps the spans of steps."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def on_span(self, span: Span) -> None:
        if span.images:
            self.spans.append(span)

    def take(self) -> list[Span]:
        """Return the spans, and forget them."""
        spans, self.spans = self.spans, []
        return spans


@dataclass(frozen=True, kw_only=True)
class _Segment:
    """A part of the run whose steps are of the same kind."""

    mosaic: bool
    epoch: int
    """First epoch, counted from 0."""
    max_steps: int
    seconds: float
    """Time for the measurement."""


class Bench:
    """Measures a prepared trainer. All ranks call `run` together."""

    def __init__(self, trainer: Trainer, seconds: float) -> None:
        """
        Args:
            trainer: inside `Trainer.prepared`.
            seconds: time for all measurements, without warm-up.
        """
        self._trainer, self._seconds = trainer, seconds
        self._recorder = StepRecorder()
        trainer.listeners = [*trainer.listeners, self._recorder]
        self._update_seconds: list[float] = []

    def run(self) -> Measurement:
        """Return the measurement.

        Raises:
            BadInput: the batch does not fit in memory.
        """
        trainer, began = self._trainer, time.monotonic()
        profile = profile_model(unwrap_model(trainer.model), trainer.args.imgsz, trainer.dtype, trainer.optimizer)
        self._check_memory(profile.memory)
        folder = trainer.run_folder.path if trainer.run_folder else None
        rates = io_rates.measure(trainer.samples, folder, trainer.run.spec.dataset.uri, is_main=trainer.world.is_main)
        trainer.clock.start()
        self._train(trainer.batches(0, 0), 0, 2)
        early_validation, _ = self._measure_epoch_end()
        meter = PowerMeter(trainer.device, trainer.world.local_world_size)
        steps = [self._measure_steps(segment) for segment in self._segments()]
        energy = meter.stop()
        late_validation, epoch_rest = self._measure_epoch_end()
        checkpoint = self._measure_checkpoint()
        link, passes = self._measure_scaling(profile.parameters)
        facts, times = trainer.facts(), trainer.startup_times
        return Measurement(
            made_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            took_seconds=round(time.monotonic() - began, 1),
            fingerprint=job_fingerprint(trainer.run.spec),
            workers=trainer.run.spec.workers.replicas,
            world_size=trainer.world.world_size,
            device=facts["device"],
            precision=facts["precision"],
            host=host.describe(trainer.device),
            model_profile=profile,
            data=DataFacts(
                images=trainer.order.samples,
                val_images=len(trainer.test_loader.dataset),
                bytes=times.staged_bytes,
            ),
            startup_seconds=trainer.startup_seconds,
            rendezvous_seconds=times.rendezvous,
            staging_seconds=times.staging,
            cached_staging_seconds=times.cached_staging,
            steps=steps,
            update_seconds=statistics.fmean(self._update_seconds),
            microbatch_passes=passes,
            validation_seconds=min(early_validation, late_validation),
            validation_max_seconds=max(early_validation, late_validation),
            checkpoint_seconds=checkpoint,
            epoch_seconds=epoch_rest,
            link=link,
            rates=rates,
            energy=energy,
        )

    # --- steps ----------------------------------------------------------------------------------------------------

    def _segments(self) -> list[_Segment]:
        """Return the parts of the run with and without mosaic."""
        trainer = self._trainer
        settings, epochs, steps = trainer.args, trainer.epochs, trainer.steps
        closed_at = trainer.samples.close_mosaic_at
        seconds = self._seconds * STEPS_SHARE
        mixes_images = any(getattr(settings, name) for name in ("mosaic", "mixup", "cutmix", "copy_paste"))
        if not mixes_images or closed_at <= 0:
            return [_Segment(mosaic=False, epoch=0, max_steps=epochs * steps, seconds=seconds)]
        if closed_at >= epochs:
            return [_Segment(mosaic=True, epoch=0, max_steps=epochs * steps, seconds=seconds)]
        share = min(max(closed_at / epochs, 0.3), 0.7)
        return [
            _Segment(mosaic=True, epoch=0, max_steps=closed_at * steps, seconds=seconds * share),
            _Segment(
                mosaic=False,
                epoch=closed_at,
                max_steps=(epochs - closed_at) * steps,
                seconds=seconds * (1 - share),
            ),
        ]

    def _measure_steps(self, segment: _Segment) -> Steps:
        trainer = self._trainer
        trainer.seek(segment.epoch, 0)
        trainer.set_train_mode()
        trainer.optimizer.zero_grad()
        batches = trainer.batches(segment.epoch, 0)
        boundary = self._train(batches, 0, min(WARM_UP_STEPS, max(segment.max_steps - MIN_STEPS, 1)))
        warm = statistics.fmean(s.duration for s in self._recorder.spans[1:] or self._recorder.spans)
        # Rank 0 decides, because all ranks must make the same number of steps.
        wanted = round(trainer.world.from_main(max(round(segment.seconds / warm), MIN_STEPS)))
        count = max(min(wanted, segment.max_steps - trainer.step), 1)
        self._recorder.take()
        self._train(batches, boundary, count)
        spans = self._recorder.take()
        sums: dict[TimePart, float] = {}
        for span in spans:
            for part, value in span.seconds.items():
                sums[part] = sums.get(part, 0.0) + value
        with_update = [span for span in spans if TimePart.OPTIMIZER in span.seconds]
        self._update_seconds += [sum(span.seconds[part] for part in UPDATE_PARTS) for span in with_update]
        durations = [s.duration - sum(s.seconds.get(part, 0) for part in UPDATE_PARTS) for s in spans]
        return Steps(
            with_mosaic=segment.mosaic,
            count=len(spans),
            seconds={part.value: value / len(spans) for part, value in sums.items() if part not in UPDATE_PARTS},
            deviation=statistics.stdev(durations) if len(spans) > 1 else 0.0,
        )

    def _train(self, batches: Iterator[dict[str, Any]], boundary: int, count: int) -> int:
        """Train a number of steps; for `boundary` and the result see `Trainer.next_step`."""
        trainer = self._trainer
        for _ in range(count):
            trainer.agree(boundary)
            boundary = trainer.next_step(batches, boundary)
            if trainer.step == trainer.steps:
                trainer.seek(trainer.epoch + 1, 0)
                boundary = 0
        trainer.collect_spans(wait=True)
        return boundary

    # --- the end of an epoch --------------------------------------------------------------------------------------

    def _measure_epoch_end(self) -> tuple[float, float]:
        """Return (seconds of a validation, seconds of everything else at the end of an epoch).

        The duration of a validation depends on the network's progress: one that has just begun to learn predicts
        thousands of objects, which are compared pairwise. Therefore it is measured at the beginning, too.
        """
        trainer = self._trainer
        total = len(trainer.test_loader)
        trainer.seek(trainer.epochs - 1, trainer.steps)  # the last epoch is always validated
        self._validate(1)  # the first validation allocates memory
        first, rest = self._validate(1)
        # Rank 0 decides, because all ranks must validate the same number of batches.
        affordable = round(trainer.world.from_main(max(round(self._seconds * VALIDATION_SHARE / first), 2)))
        count = min(affordable, total)
        seconds = first * total
        if count > 1:
            several, rest = self._validate(count)
            seconds = several + max(several - first, 0.0) / (count - 1) * (total - count)
        trainer.limit_validation(None)
        return seconds, rest

    def _measure_checkpoint(self) -> float:
        """Return the seconds of a checkpoint with weights, as after most epochs."""
        trainer = self._trainer
        trainer.seek(trainer.epoch + 1, 0)
        trainer.save()  # the first one creates folders
        began = time.perf_counter()
        trainer.save()
        return time.perf_counter() - began

    def _validate(self, batches: int) -> tuple[float, float]:
        """Return (seconds of a validation of some batches, seconds of everything else that ends an epoch)."""
        trainer = self._trainer
        trainer.limit_validation(batches)
        began = time.perf_counter()
        trainer.end_epoch()
        seconds = time.perf_counter() - began
        return trainer.validation_seconds, max(seconds - trainer.validation_seconds, 0.0)

    # --- other sizes ----------------------------------------------------------------------------------------------

    def _measure_scaling(self, parameters: int) -> tuple[Link | None, list[MicrobatchPass]]:
        """Return the measurements for predictions with other numbers of workers."""
        trainer = self._trainer
        if trainer.world.world_size > 1:
            link = all_reduce.measure(trainer.world, parameters)
            return link, self._measure_passes(None)
        if trainer.device.type == "cuda":  # workers on one machine have separate GPUs
            return None, self._measure_passes(None)
        half = max(trainer.order.sizes(0, trainer.world.rank, trainer.world.world_size)[0] // 2, 1)
        batch = first_images(self._first_batch(), half)
        with ContentionProbe(unwrap_model(trainer.model), batch, trainer.dtype) as probe:
            return all_reduce.measure_between_processes(probe, parameters), self._measure_passes(probe)

    def _first_batch(self) -> dict[str, Any]:
        """Return the first microbatch of the last epoch, on the device."""
        trainer = self._trainer
        return trainer.to_device(next(trainer.batches(trainer.epochs - 1, 0)))

    def _measure_passes(self, probe: ContentionProbe | None) -> list[MicrobatchPass]:
        """Measure forward and backward passes of a whole and of half a microbatch."""
        trainer = self._trainer
        trainer.unwrap()
        parts = trainer.execution.micro_batches  # more than one if memory is short
        trainer.reshard(parts)
        whole = self._first_batch()
        half = None
        if whole["img"].shape[0] >= 4:
            trainer.reshard(2 * parts)
            half = self._first_batch()
        seconds = self._mean_seconds([b for b in (whole, half) if b is not None], self._seconds * PASSES_SHARE)
        passes = [MicrobatchPass(images=int(whole["img"].shape[0]), seconds=seconds[0])]
        if half is None:
            return passes
        shared: float | None = None
        if probe is not None:
            threads = torch.get_num_threads()
            torch.set_num_threads(max(threads // 2, 1))
            try:
                with probe.hold_load():
                    shared = self._mean_seconds([half], self._seconds * CONTENTION_SHARE)[0]
            finally:
                torch.set_num_threads(threads)
        return [*passes, MicrobatchPass(images=int(half["img"].shape[0]), seconds=seconds[1], shared_seconds=shared)]

    def _mean_seconds(self, batches: list[dict[str, Any]], seconds: float) -> list[float]:
        """Return the mean seconds of a pass of each batch, measured alternately for a given time."""
        for batch in batches * 2:
            self._pass_seconds(batch)
        samples: list[list[float]] = [[] for _ in batches]
        end = time.monotonic() + seconds
        while len(samples[-1]) < MIN_PASSES or (time.monotonic() < end and len(samples[-1]) < MAX_PASSES):
            for batch, times in zip(batches, samples, strict=True):
                times.append(self._pass_seconds(batch))
        return [statistics.fmean(times) for times in samples]

    def _pass_seconds(self, batch: dict[str, Any]) -> float:
        trainer = self._trainer
        cuda = trainer.device.type == "cuda"
        if cuda:
            torch.cuda.synchronize()
        began = time.perf_counter()
        loss, _ = trainer.compute_loss(batch, trainer.predict(batch))
        loss.sum().backward()  # type: ignore[no-untyped-call]
        if cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        for parameter in trainer.model.parameters():
            parameter.grad = None
        return seconds

    # --- memory ---------------------------------------------------------------------------------------------------

    def _check_memory(self, needed: Callable[[int], float]) -> None:
        """Check on all ranks that the batch fits in memory.

        Args:
            needed: number of images in a microbatch -> bytes.

        Raises:
            BadInput: it does not fit; the message states the missing memory and the largest batch that fits.
        """
        trainer, world = self._trainer, self._trainer.world
        free = host.free_memory(trainer.device) // (1 if trainer.device.type == "cuda" else world.local_world_size)
        images = max(max(trainer.order.sizes(0, rank, world.world_size)) for rank in range(world.world_size))
        if not world.any(needed(images) > free):
            return
        fitting = max((n for n in range(0, images + 1) if needed(n) <= free), default=0)
        batch = fitting * trainer.order.shards
        unit = "GPU" if trainer.device.type == "cuda" else "worker"
        hint = f"the largest batch that fits is {batch}" if batch else "not even one image of this size fits"
        raise BadInput(
            Reason.OUT_OF_MEMORY,
            f"spec.train.batch: {trainer.order.batch}: needs about {needed(images) / 2**30:.1f} GiB in each {unit}, "
            f"which has {free / 2**30:.1f} GiB: {max(needed(images) - free, 0) / 2**30:.1f} GiB are missing; {hint}",
        )
