"""Predicts how long a job takes for any number of workers, from a measurement of it. Pure.

`of` adds up what the whole job consists of (`yolojob.estimation.workload`) at the measured pace. For other numbers of
workers, the measured passes of a whole and of half a micro-batch give the fixed cost of a pass and its cost per image.
`yolojob.estimation.roofline` covers machines that were not measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import NormalDist

from yolojob.api.measurement import Link, Measurement, Steps
from yolojob.api.spec import YoloTrainingJobSpec
from yolojob.estimation import workload
from yolojob.estimation.estimate import Basis, Figure, total

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
COMPUTING = ("h2d", "forward", "loss", "backward")


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A job on some workers."""

    workers: int
    parts: dict[str, Figure]
    """Seconds by part, as in `status.timing`."""
    images_per_second: float
    """While it trains steps with what most epochs have."""
    limit: str
    """What one would have to make faster."""
    notes: tuple[str, ...] = field(default=())

    @property
    def total(self) -> Figure:
        """Seconds from the start to the model."""
        return total(self.parts.values())

    @property
    def running(self) -> Figure:
        """Seconds in which pods run, and cost."""
        return total(figure for part, figure in self.parts.items() if part not in WAITING)


WAITING = ("queued", "scheduling", "image pull")
"""Parts before a pod runs."""


def of(
    spec: YoloTrainingJobSpec,
    measured: Measurement,
    *,
    workers: int,
    shared: bool,
    cached: bool,
    waits: dict[str, Figure] | None = None,
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
    job = workload.of(spec, images)
    processes = workers * spec.workers.processes
    same = processes == measured.world_size
    pace = _Pace(measured, processes, shared=shared, link=link)
    basis, spread = (Basis.MEASURED, NOISE) if same else (Basis.SCALED, SCALING)
    training: dict[str, float] = {}
    spreads = 0.0
    kinds = ((True, job.mosaic_epochs), (False, job.epochs - job.mosaic_epochs))
    for mosaic, epochs in kinds:
        steps = _steps(measured, mosaic)
        count = epochs * job.steps
        for phase, seconds in pace.step(steps).items():
            training[phase] = training.get(phase, 0.0) + seconds * count
        spreads += _uncertainty(steps) * epochs / job.epochs
    training["optimizer"] = pace.update * job.updates
    parts = {
        **(waits or {}),
        "rendezvous": Figure.within(measured.rendezvous_seconds, 0.5, Basis.MEASURED)
        if same
        else Figure.factor(RENDEZVOUS if workers > 1 and not shared else 0.0, 3.0),
        "staging": Figure.within(
            measured.cached_staging_seconds if cached else measured.staging_seconds, 0.2, Basis.MEASURED
        ),
        "startup": Figure.within(pace.startup, 0.15 if same else 0.3, basis),
    }
    parts |= {
        phase: Figure.within(seconds, spread + spreads, basis) for phase, seconds in training.items() if seconds > 0
    }
    usual = Figure.within(pace.validation * job.validations, spread + 0.1, basis)
    most = usual.high * measured.validation_most_seconds / max(measured.validation_seconds, 1e-9)
    parts["validation"] = usual.model_copy(update={"high": most})
    parts["checkpoint"] = Figure.within(measured.checkpoint_seconds * job.saves, 0.3, Basis.MEASURED)
    rest = training.get("unaccounted", 0.0) + measured.epoch_seconds * job.epochs
    parts["unaccounted"] = Figure.within(rest, spread, basis)
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
        whole = measured.micro[0]
        self._share = measured.world_size / processes
        each = whole.images * self._share
        alone = _pass_seconds(measured, each) / whole.seconds
        self._slower = 1.0
        if shared and not self._same:
            half = measured.micro[-1]
            if half.shared_seconds is not None:
                # Two of them slow each other down as the bench's twin did; more of them take turns.
                crowd = max(processes / measured.world_size / 2, 1.0)
                self._slower = half.shared_seconds / half.seconds * crowd
        self._compute = 1.0 if self._same else alone * self._slower

    def step(self, steps: Steps) -> dict[str, float]:
        """Seconds of a step by phase, without optimizer and moving average."""
        if self._same:
            return dict(steps.seconds)
        out = {}
        for phase, seconds in steps.seconds.items():
            if phase in COMPUTING:
                out[phase] = seconds * self._compute
            elif phase == "data_wait":
                out[phase] = seconds * self._share
            elif phase != "all_reduce":
                out[phase] = seconds
        if self._processes > 1 and self._link is not None:
            backward = out.get("backward", 0.0)
            gradients = 4 * self._measured.anatomy.parameters
            out["all_reduce"] = exposed(self._link, self._processes, gradients, backward)
            out["all_reduce"] += steps.deviation * slowest(self._processes)
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
    whole = measured.micro[0]
    if len(measured.micro) < 2:
        return whole.seconds * images / whole.images
    half = measured.micro[1]
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
    return next((s for s in measured.steps if s.mosaic is mosaic), measured.steps[0])


def _uncertainty(steps: Steps) -> float:
    """Two standard errors of the mean step, as a part of it."""
    mean = sum(steps.seconds.values())
    return 2 * steps.deviation / steps.count**0.5 / mean if mean else 0.0


def _limit(training: dict[str, float], parts: dict[str, Figure]) -> str:
    """What takes most, in words."""
    groups = {
        "computing": sum(training.get(p, 0.0) for p in (*COMPUTING, "optimizer")),
        "waiting for data": training.get("data_wait", 0.0),
        "reducing gradients": training.get("all_reduce", 0.0),
        "validation": parts["validation"].value,
        "checkpoints": parts["checkpoint"].value,
        "the start": sum(
            f.value for name, f in parts.items() if name in (*WAITING, "staging", "startup", "rendezvous")
        ),
    }
    return max(groups, key=lambda name: groups[name])
