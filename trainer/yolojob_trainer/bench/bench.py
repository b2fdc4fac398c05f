"""A bench: what a whole training is made of, measured in less than a minute by the training's own loop.

Real network, data and batch: steps with and without mosaic, the work of an optimizer step, a validation, a checkpoint. Then
what tells how it would be with other workers: passes of half a micro-batch, the same beside a busy twin, the reduction of
gradients. The weights move as in a training; nothing is kept.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import torch
from ultralytics.utils.torch_utils import unwrap_model

from yolojob.api.fingerprint import job_fingerprint
from yolojob.api.measurement import DataFacts, Link, Measurement, MicrobatchPass, Steps
from yolojob.api.reasons import Reason
from yolojob.api.time_parts import TimePart
from yolojob_trainer.bench import all_reduce, io_rates
from yolojob_trainer.bench.contention import Twin
from yolojob_trainer.bench.power import Meter
from yolojob_trainer.errors import BadInput
from yolojob_trainer.model import profile
from yolojob_trainer.system import host
from yolojob_trainer.training.callbacks import Callback
from yolojob_trainer.training.phase_clock import Span

if TYPE_CHECKING:
    from yolojob_trainer.training.trainer import Trainer

WARM_UP = 5
"""Steps before any time counts: the first ones allocate, and choose kernels."""
FEWEST = 6
"""Steps that a mean is made of, however long they take."""
STEPS, PASSES, TWIN, VALIDATION = 0.45, 0.15, 0.15, 0.1
"""Shares of the time for training steps, for passes of other sizes, beside the twin, and for each of two validations."""
FEW_PASSES, MOST_PASSES = 4, 60


class Recorder(Callback):
    """Keeps the spans of steps."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def on_span(self, span: Span) -> None:
        if span.images:
            self.spans.append(span)


class Bench:
    """Measures one trainer that is set up. All ranks call `run` together."""

    def __init__(self, trainer: Trainer, seconds: float) -> None:
        """
        Args:
            trainer: ready to train its first step.
            seconds: time for all measurements, without warming up.
        """
        self._trainer, self._seconds = trainer, seconds
        self._recorder = Recorder()
        trainer.listeners = [*trainer.listeners, self._recorder]
        self._updates: list[float] = []

    def run(self) -> Measurement:
        """
        Raises:
            BadInput: it does not fit into memory.
        """
        trainer, began = self._trainer, time.monotonic()
        parts = profile.of(unwrap_model(trainer.model), trainer.args.imgsz, trainer.dtype, trainer.optimizer)
        self._check_memory(parts.memory)
        rates = io_rates.rates(trainer)
        trainer.clock.start()
        self._train(trainer.batches(0, 0), 0, 2)
        early, _ = self._end_of_epoch()
        meter = Meter(trainer.device)
        steps = [self._steps(*segment) for segment in self._segments()]
        energy = meter.stop()
        late, rest = self._end_of_epoch()
        checkpoint = self._checkpoint()
        if trainer.world.world_size > 1:
            link: Link | None = all_reduce.measure(trainer.world, parts.parameters)
            micro = self._passes(None)
        else:
            link, micro = self._beside_a_twin(parts.parameters)
        return Measurement(
            made_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            took_seconds=round(time.monotonic() - began, 1),
            fingerprint=job_fingerprint(trainer.run.spec),
            workers=trainer.run.spec.workers.replicas,
            world_size=trainer.world.world_size,
            device=trainer.facts()["device"],
            precision=trainer.facts()["precision"],
            host=host.describe(trainer.device),
            model_profile=parts,
            data=DataFacts(
                images=trainer.order.samples,
                val_images=len(trainer.test_loader.dataset),
                bytes=trainer.beginning.staged_bytes,
            ),
            startup_seconds=trainer.startup_took,
            rendezvous_seconds=trainer.beginning.rendezvous,
            staging_seconds=trainer.beginning.staging,
            cached_staging_seconds=trainer.beginning.cached_staging,
            steps=[found for found in steps if found],
            update_seconds=statistics.fmean(self._updates),
            microbatch_passes=micro,
            validation_seconds=min(early, late),
            validation_max_seconds=max(early, late),
            checkpoint_seconds=checkpoint,
            epoch_seconds=rest,
            link=link,
            rates=rates,
            energy=energy,
        )

    # --- steps ----------------------------------------------------------------------------------------------------

    def _segments(self) -> list[tuple[bool, int, int, float]]:
        """(with mosaic, first epoch, most steps, seconds) of each kind of step that the job has."""
        trainer = self._trainer
        settings, epochs, steps = trainer.args, trainer.epochs, trainer.steps
        closed_at = trainer.samples.close_mosaic_at
        seconds = self._seconds * STEPS
        mixes = any(getattr(settings, name) for name in ("mosaic", "mixup", "cutmix", "copy_paste"))
        if not mixes or closed_at <= 0:
            return [(False, 0, epochs * steps, seconds)]
        if closed_at >= epochs:
            return [(True, 0, epochs * steps, seconds)]
        share = min(max(closed_at / epochs, 0.3), 0.7)
        return [
            (True, 0, closed_at * steps, seconds * share),
            (False, closed_at, (epochs - closed_at) * steps, seconds * (1 - share)),
        ]

    def _steps(self, mosaic: bool, epoch: int, most: int, seconds: float) -> Steps:
        trainer = self._trainer
        trainer.epoch, trainer.step = epoch, 0
        trainer._model_train()
        trainer.optimizer.zero_grad()
        batches = trainer.batches(epoch, 0)
        boundary = self._train(batches, 0, min(WARM_UP, max(most - FEWEST, 1)))
        warm = statistics.fmean(s.duration for s in self._recorder.spans[1:] or self._recorder.spans)
        # Rank 0 decides, for all must make the same number of steps.
        wanted = max(round(seconds / warm), FEWEST) if trainer.world.is_main else 0
        count = max(min(round(trainer.world.sum([float(wanted)])[0]), most - trainer.step), 1)
        self._recorder.spans.clear()
        self._train(batches, boundary, count)
        spans, self._recorder.spans = self._recorder.spans, []
        sums: dict[TimePart, float] = {}
        for span in spans:
            for phase, value in span.seconds.items():
                sums[phase] = sums.get(phase, 0.0) + value
        updates = [
            s.seconds[TimePart.OPTIMIZER] + s.seconds[TimePart.EMA] for s in spans if TimePart.OPTIMIZER in s.seconds
        ]
        self._updates += updates
        rest = {
            phase: value / len(spans)
            for phase, value in sums.items()
            if phase not in (TimePart.OPTIMIZER, TimePart.EMA)
        }
        durations = [s.duration - s.seconds.get(TimePart.OPTIMIZER, 0) - s.seconds.get(TimePart.EMA, 0) for s in spans]
        return Steps(
            with_mosaic=mosaic,
            count=len(spans),
            seconds={phase.value: value for phase, value in rest.items()},
            deviation=statistics.stdev(durations) if len(spans) > 1 else 0.0,
        )

    def _train(self, batches: Iterator[dict[str, Any]], boundary: int, count: int) -> int:
        trainer = self._trainer
        for _ in range(count):
            trainer._agree(boundary)
            boundary = trainer.next_step(batches, boundary)
            if trainer.step == trainer.steps:
                trainer.epoch, trainer.step, boundary = trainer.epoch + 1, 0, 0
        trainer.collect(wait=True)
        return boundary

    # --- the end of an epoch --------------------------------------------------------------------------------------

    def _end_of_epoch(self) -> tuple[float, float]:
        """(validation, what else is there) at the end of an epoch, in seconds.

        How long it takes depends on what the network has learnt: one that has begun to learn sees thousands of objects, which
        are sorted out one against the other. So it is measured at the beginning, too.
        """
        trainer = self._trainer
        whole = trainer.validator.dataloader
        trainer.epoch, trainer.step = min(trainer.epoch, trainer.epochs - 1), trainer.steps
        self._validation(whole, 1)  # the first one allocates
        first, rest = self._validation(whole, 1)
        # Rank 0 decides, for all must validate the same number of batches.
        allowed = max(round(self._seconds * VALIDATION / first), 2) if trainer.world.is_main else 0
        count = min(round(trainer.world.sum([float(allowed)])[0]), len(whole))
        seconds = first * len(whole)
        if count > 1:
            several, rest = self._validation(whole, count)
            seconds = several + max(several - first, 0.0) / (count - 1) * (len(whole) - count)
        trainer.validator.dataloader = whole
        return seconds, rest

    def _checkpoint(self) -> float:
        """Seconds of a checkpoint with weights, as after most epochs."""
        trainer = self._trainer
        trainer.epoch, trainer.step = trainer.epoch + 1, 0
        trainer.save()  # the first one makes folders
        began = time.perf_counter()
        trainer.save()
        return time.perf_counter() - began

    def _validation(self, whole: Any, count: int) -> tuple[float, float]:
        """(of a validation of so many batches, of what else ends an epoch), in seconds."""
        trainer = self._trainer
        trainer.validator.dataloader = First(whole, count)
        began = time.perf_counter()
        trainer.end_epoch()
        took = time.perf_counter() - began
        return trainer.validation_took, max(took - trainer.validation_took, 0.0)

    # --- other sizes ----------------------------------------------------------------------------------------------

    def _beside_a_twin(self, parameters: int) -> tuple[Link | None, list[MicrobatchPass]]:
        """(reduction between two processes, passes); where workers share their machine's CPUs."""
        if self._trainer.device.type == "cuda":  # each has a GPU of its own
            return None, self._passes(None)
        with Twin(self._trainer, self._half()) as twin:
            return all_reduce.between_processes(twin, parameters), self._passes(twin)

    def _half(self) -> int:
        """Images of half a micro-batch."""
        trainer = self._trainer
        return max(trainer.order.sizes(0, trainer.world.rank, trainer.world.world_size)[0] // 2, 1)

    def _passes(self, twin: Twin | None) -> list[MicrobatchPass]:
        """Forward and backward passes of a whole and of half a micro-batch, in turns."""
        trainer = self._trainer
        trainer.model = unwrap_model(trainer.model)
        whole = self._batch_of(1)
        half = self._batch_of(2) if whole["img"].shape[0] >= 4 else None
        seconds = self._in_turns([b for b in (whole, half) if b is not None], self._seconds * PASSES)
        found = [MicrobatchPass(images=int(whole["img"].shape[0]), seconds=seconds[0])]
        if half is None:
            return found
        shared: float | None = None
        if twin is not None:
            threads = torch.get_num_threads()
            torch.set_num_threads(max(threads // 2, 1))
            try:
                with twin.busy():
                    shared = self._in_turns([half], self._seconds * TWIN)[0]
            finally:
                torch.set_num_threads(threads)
        return [*found, MicrobatchPass(images=int(half["img"].shape[0]), seconds=seconds[1], shared_seconds=shared)]

    def _batch_of(self, parts: int) -> dict[str, Any]:
        """The first micro-batch when the rank's share is cut into so many times more parts; on the device."""
        trainer = self._trainer
        trainer.order = trainer._order(trainer.samples.dataset, replace(trainer.choice, micro_batches=parts))
        return trainer.to_device(next(trainer.batches(trainer.epochs - 1, 0)))

    def _in_turns(self, batches: list[dict[str, Any]], seconds: float) -> list[float]:
        """Mean seconds of a pass of each batch."""
        for batch in batches * 2:
            self._pass(batch)
        took: list[list[float]] = [[] for _ in batches]
        end = time.monotonic() + seconds
        while len(took[-1]) < FEW_PASSES or (time.monotonic() < end and len(took[-1]) < MOST_PASSES):
            for batch, times in zip(batches, took, strict=True):
                times.append(self._pass(batch))
        return [statistics.fmean(times) for times in took]

    def _pass(self, batch: dict[str, Any]) -> float:
        trainer = self._trainer
        cuda = trainer.device.type == "cuda"
        if cuda:
            torch.cuda.synchronize()
        began = time.perf_counter()
        loss, _ = trainer.losses_of(batch, trainer.predict(batch))
        loss.sum().backward()  # type: ignore[no-untyped-call]
        if cuda:
            torch.cuda.synchronize()
        took = time.perf_counter() - began
        for parameter in trainer.model.parameters():
            parameter.grad = None
        return took

    # --- memory ---------------------------------------------------------------------------------------------------

    def _check_memory(self, needed: Any) -> None:
        """
        Raises:
            BadInput: the batch does not fit; says how much is missing, and which batch would.
        """
        trainer, world = self._trainer, self._trainer.world
        free = host.free_memory(trainer.device) // (1 if trainer.device.type == "cuda" else world.local_world_size)
        images = max(max(trainer.order.sizes(0, rank, world.world_size)) for rank in range(world.world_size))
        short = needed(images) > free
        if not world.sum([float(short)])[0]:
            return
        fits = max((n for n in range(0, images + 1) if needed(n) <= free), default=0)
        batch = fits * trainer.order.shards
        where = "GPU" if trainer.device.type == "cuda" else "worker"
        way = f"the largest batch that fits is {batch}" if batch else "not even one image of this size fits"
        raise BadInput(
            Reason.OUT_OF_MEMORY,
            f"spec.train.batch: {trainer.order.batch}: needs about {needed(images) / 2**30:.1f} GiB in each {where}, which has "
            f"{free / 2**30:.1f} GiB: {max(needed(images) - free, 0) / 2**30:.1f} GiB are missing; {way}",
        )


class First:
    """The first batches of a loader."""

    def __init__(self, whole: Any, count: int) -> None:
        self._whole, self._count = whole, count
        self.dataset = whole.dataset

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Any]:
        for _, batch in zip(range(self._count), self._whole, strict=False):
            yield batch
