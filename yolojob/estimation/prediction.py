"""Predicts how long a job takes for any number of workers, from a measurement of it. Pure.

`predict_from_bench` multiplies the job's workload (`yolojob.estimation.workload`) by the measured times. For other
numbers of workers, the measured passes of a whole and of half a micro-batch give the fixed cost of a pass and its cost
per image. `yolojob.estimation.roofline` covers machines that were not measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import NormalDist

from yolojob.api.measurement import Link, Measurement, Steps
from yolojob.api.spec import YoloTrainingJobSpec
from yolojob.api.time_parts import NETWORK_PARTS, TimeGroup, TimePart, sum_trainer_parts
from yolojob.estimation import workload
from yolojob.estimation.estimate import Basis, Estimate, total

BENCH_ERROR = 0.05
"""Fraction by which a machine is faster or slower than during the bench; measured: docs/costs.md."""
SCALING_ERROR = 0.12
"""The same for another number of workers than the bench had."""
GRADIENT_BUCKET_BYTES = 25 << 20
"""Bytes of gradients that DDP reduces at once; the last bucket cannot overlap with the backward pass
(torch.nn.parallel.DistributedDataParallel, bucket_cap_mb)."""
RENDEZVOUS_SECONDS = 1.0
"""Rendezvous time of workers that start at the same time on separate machines."""
STARTUP_SLOWDOWN_PER_WORKER = 0.6
"""Each further worker on a machine lengthens the startup by this fraction: the workers share the disk, and index the
labels one after the other; measured: docs/benchmarks.md."""
COMPUTE_PARTS = (TimePart.H2D, *NETWORK_PARTS)
"""Parts of a step whose time grows with the images per process."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The predicted time of a job on a number of workers."""

    workers: int
    parts: dict[TimePart, Estimate]
    """Seconds by part, as in `status.timing`."""
    images_per_second: float
    """During training steps of the most frequent kind, with or without mosaic."""
    limit: str
    """What takes most of the time."""
    notes: tuple[str, ...] = field(default=())

    @property
    def total(self) -> Estimate:
        """Seconds from the start to the model."""
        return total(self.parts.values())

    @property
    def running(self) -> Estimate:
        """Seconds in which pods run, and cost."""
        return total(figure for part, figure in self.parts.items() if part.group is not TimeGroup.WAITING)


@dataclass(frozen=True, kw_only=True)
class WorkerSetup:
    """The number of workers to predict, and how they run."""

    workers: int
    shared: bool
    """Whether all of them share the CPUs of one machine."""
    cached: bool
    """Whether the dataset is already on the node."""
    waits: dict[TimePart, Estimate] = field(default_factory=dict)
    """Seconds before the pods run, by part."""
    link: Link | None = None
    """Speed of all-reduce among the workers, if the bench could not measure it."""


def predict_from_bench(spec: YoloTrainingJobSpec, measured: Measurement, setup: WorkerSetup) -> Prediction:
    """Predict a job from its measurement.

    Args:
        spec: the job; its own number of workers is ignored.
        measured: a bench of the job.
        setup: the workers.
    """
    images = measured.data.images or 0
    job = workload.count_workload(spec, images)
    processes = setup.workers * spec.workers.processes
    same = processes == measured.world_size
    pace = _Pace(measured, processes, shared=setup.shared, link=setup.link)
    basis, spread = (Basis.MEASURED, BENCH_ERROR) if same else (Basis.SCALED, SCALING_ERROR)
    training: dict[TimePart, float] = {}
    noise = 0.0
    kinds = ((True, job.mosaic_epochs), (False, job.epochs - job.mosaic_epochs))
    for mosaic, epochs in kinds:
        steps = _steps(measured, mosaic)
        count = epochs * job.steps
        for phase, seconds in pace.step(steps).items():
            training[phase] = training.get(phase, 0.0) + seconds * count
        noise += _uncertainty(steps) * epochs / job.epochs
    training[TimePart.OPTIMIZER] = pace.update * job.updates
    parts = {
        **setup.waits,
        TimePart.RENDEZVOUS: Estimate.within(measured.rendezvous_seconds, 0.5, Basis.MEASURED)
        if same
        else Estimate.within_factor(RENDEZVOUS_SECONDS if setup.workers > 1 and not setup.shared else 0.0, 3.0),
        TimePart.STAGING: Estimate.within(
            measured.cached_staging_seconds if setup.cached else measured.staging_seconds, 0.2, Basis.MEASURED
        ),
        TimePart.STARTUP: Estimate.within(pace.startup, 0.15 if same else 0.3, basis),
    }
    parts |= {
        phase: Estimate.within(seconds, spread + noise, basis) for phase, seconds in training.items() if seconds > 0
    }
    validation = Estimate.within(pace.validation * job.validations, spread + 0.1, basis)
    slowest = validation.high * measured.validation_max_seconds / max(measured.validation_seconds, 1e-9)
    parts[TimePart.VALIDATION] = validation.model_copy(update={"high": slowest})
    parts[TimePart.CHECKPOINT] = Estimate.within(measured.checkpoint_seconds * job.saves, 0.3, Basis.MEASURED)
    rest = training.get(TimePart.OTHER, 0.0) + measured.epoch_seconds * job.epochs
    parts[TimePart.OTHER] = Estimate.within(rest, spread, basis)
    step_seconds = sum(pace.step(_steps(measured, job.mosaic_epochs * 2 > job.epochs)).values())
    step_seconds += pace.update * job.updates / (job.steps * job.epochs)
    return Prediction(
        workers=setup.workers,
        parts=parts,
        images_per_second=spec.train.batch / step_seconds,
        limit=_limit(training, parts),
    )


class _Pace:
    """Times of a training's parts with a given number of processes."""

    def __init__(self, measured: Measurement, processes: int, *, shared: bool, link: Link | None) -> None:
        self._measured, self._shared = measured, shared
        self._same = processes == measured.world_size
        self._link = link or measured.link
        self._processes = processes
        whole = measured.microbatch_passes[0]
        self._share = measured.world_size / processes
        images_per_process = whole.images * self._share
        alone = _pass_seconds(measured, images_per_process) / whole.seconds
        self._slowdown = 1.0
        if shared and not self._same:
            half = measured.microbatch_passes[-1]
            if half.shared_seconds is not None:
                # Two processes slow each other down as in the bench; more processes queue for CPUs.
                oversubscription = max(processes / measured.world_size / 2, 1.0)
                self._slowdown = half.shared_seconds / half.seconds * oversubscription
        self._compute = 1.0 if self._same else alone * self._slowdown

    def step(self, steps: Steps) -> dict[TimePart, float]:
        """Seconds of a step by phase, without optimizer and moving average."""
        if self._same:
            return sum_trainer_parts(steps.seconds)
        parts: dict[TimePart, float] = {}
        for phase, seconds in sum_trainer_parts(steps.seconds).items():
            if phase in COMPUTE_PARTS:
                parts[phase] = seconds * self._compute
            elif phase == TimePart.DATA_WAIT:
                parts[phase] = seconds * self._share
            elif phase != TimePart.ALL_REDUCE:
                parts[phase] = seconds
        if self._processes > 1 and self._link is not None:
            backward = parts.get(TimePart.BACKWARD, 0.0)
            gradients = 4 * self._measured.model_profile.parameters
            parts[TimePart.ALL_REDUCE] = exposed_all_reduce_seconds(self._link, self._processes, gradients, backward)
            parts[TimePart.ALL_REDUCE] += steps.deviation * expected_maximum(self._processes)
        return parts

    @property
    def startup(self) -> float:
        additional = max(self._processes - self._measured.world_size, 0) if self._shared else 0
        return self._measured.startup_seconds * (1 + STARTUP_SLOWDOWN_PER_WORKER * additional)

    @property
    def update(self) -> float:
        return self._measured.update_seconds * (1.0 if self._same else self._slowdown)

    @property
    def validation(self) -> float:
        # On a shared machine, the total work and the CPUs stay the same.
        return self._measured.validation_seconds * (max(self._compute, 1.0) if self._shared else self._compute)


def _pass_seconds(measured: Measurement, images: float) -> float:
    """Seconds of a pass of this many images: a fixed part, and a part for each image."""
    whole = measured.microbatch_passes[0]
    if len(measured.microbatch_passes) < 2:
        return whole.seconds * images / whole.images
    half = measured.microbatch_passes[1]
    per_image = max((whole.seconds - half.seconds) / (whole.images - half.images), 0.0)
    return max(half.seconds + per_image * (images - half.images), 0.0)


def expected_maximum(ranks: int) -> float:
    """Standard deviations by which the slowest rank is expected to exceed the mean: all other ranks wait for it.

    Blom's approximation of the largest of normal variates (Blom, Statistical Estimates and Transformed Beta-Variables,
    1958).
    """
    return NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25))


def exposed_all_reduce_seconds(link: Link, ranks: int, gradients: int, backward: float) -> float:
    """Seconds that all-reduce adds to a step: the part that does not overlap with the backward pass.

    Args:
        link: speed of all-reduce.
        ranks: number of ranks.
        gradients: bytes of all gradients.
        backward: seconds of the backward pass, which overlaps with all buckets but the last.
    """

    def transfer(count: float) -> float:
        return 2 * (ranks - 1) / ranks * count / link.bytes_per_second

    last = min(gradients, GRADIENT_BUCKET_BYTES)
    return link.latency_seconds * (ranks - 1) + transfer(last) + max(transfer(gradients - last) - backward, 0.0)


def _steps(measured: Measurement, mosaic: bool) -> Steps:
    """The steps with or without mosaic; the other kind if the bench measured only that."""
    return next((s for s in measured.steps if s.with_mosaic is mosaic), measured.steps[0])


def _uncertainty(steps: Steps) -> float:
    """Two standard errors of the mean step time, as a fraction of it."""
    mean = sum(steps.seconds.values())
    return 2 * steps.deviation / steps.count**0.5 / mean if mean else 0.0


def _limit(training: dict[TimePart, float], parts: dict[TimePart, Estimate]) -> str:
    """What takes most of the time, as text."""
    groups = {
        "computing": sum(training.get(p, 0.0) for p in (*COMPUTE_PARTS, TimePart.OPTIMIZER)),
        "waiting for data": training.get(TimePart.DATA_WAIT, 0.0),
        "reducing gradients": training.get(TimePart.ALL_REDUCE, 0.0),
        "validation": parts[TimePart.VALIDATION].value,
        "checkpoints": parts[TimePart.CHECKPOINT].value,
        "the start": sum(f.value for part, f in parts.items() if part.group in (TimeGroup.WAITING, TimeGroup.START)),
    }
    return max(groups, key=lambda name: groups[name])
