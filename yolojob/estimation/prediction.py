"""Predicts how long a job takes for any number of workers, from a measurement of it. Pure.

`predict_from_bench` adds up what the whole job consists of (`yolojob.estimation.workload`) at the measured pace. For
other numbers of workers, the measured passes of a whole and of half a micro-batch give the fixed cost of a pass and its
cost per image.
`yolojob.estimation.roofline` covers machines that were not measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import NormalDist

from yolojob.api.measurement import Link, Measurement, Steps
from yolojob.api.spec import YoloTrainingJobSpec
from yolojob.api.time_parts import NETWORK_PARTS, TimeGroup, TimePart, known_part
from yolojob.estimation import workload
from yolojob.estimation.estimate import Basis, Estimate, total

NOISE = 0.05
"""A machine is no faster or slower than it was during the bench, but for this part; measured: docs/costs.md."""
SCALING = 0.12
"""The same for other numbers of workers."""
BUCKET = 25 << 20
"""Bytes of gradients that DDP reduces at once; the last bucket is ready when nothing is left to hide behind
(torch.nn.parallel.DistributedDataParallel, bucket_cap_mb)."""
RENDEZVOUS = 1.0
"""Seconds in which workers on machines of their own find each other that start at the same time."""
SHARED_START = 0.6
"""Each further worker of one machine makes the start longer by this part: they share the disk, and take turns at the labels;
measured: docs/benchmarks.md."""
COMPUTING = (TimePart.H2D, *NETWORK_PARTS)
"""Parts of a step that take longer the more images a process has."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A job on some workers."""

    workers: int
    parts: dict[TimePart, Estimate]
    """Seconds by part, as in `status.timing`."""
    images_per_second: float
    """While it trains steps with what most epochs have."""
    limit: str
    """What one would have to make faster."""
    notes: tuple[str, ...] = field(default=())

    @property
    def total(self) -> Estimate:
        """Seconds from the start to the model."""
        return total(self.parts.values())

    @property
    def running(self) -> Estimate:
        """Seconds in which pods run, and cost."""
        return total(figure for part, figure in self.parts.items() if part.group is not TimeGroup.WAITING)


def predict_from_bench(
    spec: YoloTrainingJobSpec,
    measured: Measurement,
    *,
    workers: int,
    shared: bool,
    cached: bool,
    waits: dict[TimePart, Estimate] | None = None,
    link: Link | None = None,
) -> Prediction:
    """Predict a job from its measurement.

    Args:
        spec: the job; its own number of workers does not matter.
        measured: a bench of it.
        workers: how many there shall be.
        shared: whether they share the CPUs of one machine.
        cached: whether the data set is on the node already.
        waits: what comes before a pod runs, by part.
        link: how fast gradients are reduced among so many workers, where the bench could not measure it.
    """
    images = measured.data.images or 0
    job = workload.count_workload(spec, images)
    processes = workers * spec.workers.processes
    same = processes == measured.world_size
    pace = _Pace(measured, processes, shared=shared, link=link)
    basis, spread = (Basis.MEASURED, NOISE) if same else (Basis.SCALED, SCALING)
    training: dict[TimePart, float] = {}
    spreads = 0.0
    kinds = ((True, job.mosaic_epochs), (False, job.epochs - job.mosaic_epochs))
    for mosaic, epochs in kinds:
        steps = _steps(measured, mosaic)
        count = epochs * job.steps
        for phase, seconds in pace.step(steps).items():
            training[phase] = training.get(phase, 0.0) + seconds * count
        spreads += _uncertainty(steps) * epochs / job.epochs
    training[TimePart.OPTIMIZER] = pace.update * job.updates
    parts = {
        **(waits or {}),
        TimePart.RENDEZVOUS: Estimate.within(measured.rendezvous_seconds, 0.5, Basis.MEASURED)
        if same
        else Estimate.factor(RENDEZVOUS if workers > 1 and not shared else 0.0, 3.0),
        TimePart.STAGING: Estimate.within(
            measured.cached_staging_seconds if cached else measured.staging_seconds, 0.2, Basis.MEASURED
        ),
        TimePart.STARTUP: Estimate.within(pace.startup, 0.15 if same else 0.3, basis),
    }
    parts |= {
        phase: Estimate.within(seconds, spread + spreads, basis) for phase, seconds in training.items() if seconds > 0
    }
    usual = Estimate.within(pace.validation * job.validations, spread + 0.1, basis)
    most = usual.high * measured.validation_max_seconds / max(measured.validation_seconds, 1e-9)
    parts[TimePart.VALIDATION] = usual.model_copy(update={"high": most})
    parts[TimePart.CHECKPOINT] = Estimate.within(measured.checkpoint_seconds * job.saves, 0.3, Basis.MEASURED)
    rest = training.get(TimePart.OTHER, 0.0) + measured.epoch_seconds * job.epochs
    parts[TimePart.OTHER] = Estimate.within(rest, spread, basis)
    a_step = sum(pace.step(_steps(measured, job.mosaic_epochs * 2 > job.epochs)).values())
    a_step += pace.update * job.updates / (job.steps * job.epochs)
    return Prediction(
        workers=workers, parts=parts, images_per_second=spec.train.batch / a_step, limit=_limit(training, parts)
    )


class _Pace:
    """How long the parts of a training take with a number of processes."""

    def __init__(self, measured: Measurement, processes: int, *, shared: bool, link: Link | None) -> None:
        self._measured, self._shared = measured, shared
        self._same = processes == measured.world_size
        self._link = link or measured.link
        self._processes = processes
        whole = measured.microbatch_passes[0]
        self._share = measured.world_size / processes
        each = whole.images * self._share
        alone = _pass_seconds(measured, each) / whole.seconds
        self._slower = 1.0
        if shared and not self._same:
            half = measured.microbatch_passes[-1]
            if half.shared_seconds is not None:
                # Two of them slow each other down as the bench's twin did; more of them take turns.
                crowd = max(processes / measured.world_size / 2, 1.0)
                self._slower = half.shared_seconds / half.seconds * crowd
        self._compute = 1.0 if self._same else alone * self._slower

    def step(self, steps: Steps) -> dict[TimePart, float]:
        """Seconds of a step by phase, without optimizer and moving average."""
        if self._same:
            return _by_part(steps)
        out: dict[TimePart, float] = {}
        for phase, seconds in _by_part(steps).items():
            if phase in COMPUTING:
                out[phase] = seconds * self._compute
            elif phase == TimePart.DATA_WAIT:
                out[phase] = seconds * self._share
            elif phase != TimePart.ALL_REDUCE:
                out[phase] = seconds
        if self._processes > 1 and self._link is not None:
            backward = out.get(TimePart.BACKWARD, 0.0)
            gradients = 4 * self._measured.model_profile.parameters
            out[TimePart.ALL_REDUCE] = exposed(self._link, self._processes, gradients, backward)
            out[TimePart.ALL_REDUCE] += steps.deviation * slowest(self._processes)
        return out

    @property
    def startup(self) -> float:
        more = max(self._processes - self._measured.world_size, 0) if self._shared else 0
        return self._measured.startup_seconds * (1 + SHARED_START * more)

    @property
    def update(self) -> float:
        return self._measured.update_seconds * (1.0 if self._same else self._slower)

    @property
    def validation(self) -> float:
        # On a shared machine the work stays the same, whoever does it.
        return self._measured.validation_seconds * (max(self._compute, 1.0) if self._shared else self._compute)


def _pass_seconds(measured: Measurement, images: float) -> float:
    """Seconds of a pass of so many images: a part by itself, and a part for each image."""
    whole = measured.microbatch_passes[0]
    if len(measured.microbatch_passes) < 2:
        return whole.seconds * images / whole.images
    half = measured.microbatch_passes[1]
    each = max((whole.seconds - half.seconds) / (whole.images - half.images), 0.0)
    return max(half.seconds + each * (images - half.images), 0.0)


def slowest(ranks: int) -> float:
    """By how many standard deviations the slowest of so many is slower than the mean: all others wait for it.

    Blom's approximation of the largest of normal variates (Blom, Statistical Estimates and Transformed Beta-Variables, 1958).
    """
    return NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25))


def exposed(link: Link, ranks: int, gradients: int, backward: float) -> float:
    """Seconds by which reducing gradients makes a step longer: what the backward pass cannot hide.

    Args:
        link: how fast.
        ranks: how many.
        gradients: bytes of all of them.
        backward: seconds of the backward pass, behind which all buckets but the last are hidden.
    """

    def transfer(count: float) -> float:
        return 2 * (ranks - 1) / ranks * count / link.bytes_per_second

    last = min(gradients, BUCKET)
    return link.latency_seconds * (ranks - 1) + transfer(last) + max(transfer(gradients - last) - backward, 0.0)


def _steps(measured: Measurement, mosaic: bool) -> Steps:
    """The steps of this kind, or of the other where the bench saw no such."""
    return next((s for s in measured.steps if s.with_mosaic is mosaic), measured.steps[0])


def _by_part(steps: Steps) -> dict[TimePart, float]:
    seconds: dict[TimePart, float] = {}
    for name, value in steps.seconds.items():
        seconds[known_part(name)] = seconds.get(known_part(name), 0.0) + value
    return seconds


def _uncertainty(steps: Steps) -> float:
    """Two standard errors of the mean step, as a part of it."""
    mean = sum(steps.seconds.values())
    return 2 * steps.deviation / steps.count**0.5 / mean if mean else 0.0


def _limit(training: dict[TimePart, float], parts: dict[TimePart, Estimate]) -> str:
    """What takes most, in words."""
    groups = {
        "computing": sum(training.get(p, 0.0) for p in (*COMPUTING, TimePart.OPTIMIZER)),
        "waiting for data": training.get(TimePart.DATA_WAIT, 0.0),
        "reducing gradients": training.get(TimePart.ALL_REDUCE, 0.0),
        TimePart.VALIDATION: parts[TimePart.VALIDATION].value,
        "checkpoints": parts[TimePart.CHECKPOINT].value,
        "the start": sum(f.value for part, f in parts.items() if part.group in (TimeGroup.WAITING, TimeGroup.START)),
    }
    return max(groups, key=lambda name: groups[name])
