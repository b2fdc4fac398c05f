"""How long a job takes on a machine on which nothing was measured: by what its GPUs can do at best, and a part of that. Pure.

The roofline model (Williams, Waterman, Patterson: Roofline, CACM 2009): a pass takes as long as its operations at the peak
rate, or as its memory traffic at full bandwidth, whichever is longer; real networks reach a part of either. Where the same
job was measured on another GPU, that part is taken from there.
"""

from __future__ import annotations

from dataclasses import dataclass

from yolojob.api.errors import UserError
from yolojob.api.measurement import DataFacts, Link, Measurement, ModelProfile
from yolojob.api.spec import YoloTrainingJobSpec
from yolojob.api.time_parts import TimePart
from yolojob.catalogue.machines import Accelerator, Machine
from yolojob.estimation import prediction, workload
from yolojob.estimation.assumptions import Assumptions
from yolojob.estimation.estimate import Basis, Estimate, total
from yolojob.estimation.prediction import Prediction

TRAINING = 3.0
"""Operations of forward and backward pass over those of the forward pass: the backward pass computes two gradients."""
TRAFFIC = 5.0
"""Times that kept activations travel: written and read by the forward pass, and read, with their gradients written and read,
by the backward pass."""
COMPUTE, MEMORY = 0.35, 0.6
"""Parts of the peaks that detectors of this kind reach. Assumed: no GPU was at hand to measure them."""
LAUNCHES = 0.012
"""Seconds that a step takes however few images it has: some thousand kernels are started. Assumed."""
SAMPLES_PER_CORE = 60.0
"""Augmented samples of 640 pixels per second and virtual CPU, where no bench tells; fewer pixels take less. Assumed."""
LOADERS = 8
"""Loader processes of each GPU, as Ultralytics has it."""
EFFICIENCY = 0.7
"""Part of a network's rate that reductions reach. Assumed."""
INSIDE = 10e9
"""Bytes per second between GPUs of one machine: PCIe 4.0, or better. Assumed."""
STARTUP = 25.0
"""Seconds from a container's start to its first step: torch, CUDA, labels. Assumed."""
SAVING = 200e6
"""Bytes per second of a checkpoint's way to the storage. Assumed."""
FACTOR, SCALED_FACTOR = 2.0, 1.5
"""How far such predictions may be off: without, and with a measurement of the job on another GPU."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What part of its roofline a measured GPU reaches with this job."""

    part: float
    """Seconds by the roofline, over those measured."""


def calibrate(spec: YoloTrainingJobSpec, measured: Measurement, gpu: Accelerator) -> Calibration:
    """From a bench of the same job on a GPU that is in the catalogue."""
    whole = measured.microbatch_passes[0]
    at_best = _pass(spec, measured.model_profile, whole.images, gpu, 1.0)
    return Calibration(part=min(at_best / whole.seconds, 1.0))


def predict_from_roofline(
    spec: YoloTrainingJobSpec,
    model_profile: ModelProfile,
    data: DataFacts,
    machine: Machine,
    gpu: Accelerator,
    *,
    workers: int,
    assumed: Assumptions,
    samples_per_core: float | None = None,
    calibration: Calibration | None = None,
) -> Prediction:
    """Predict a job on so many machines of a kind.

    Args:
        spec: the job.
        model_profile: of its network.
        data: of its data set; `images` must be known.
        machine: one worker each.
        gpu: of the machine.
        workers: how many.
        assumed: what nobody measures.
        samples_per_core: from a bench of the same job, on whatever machine.
        calibration: from a bench of the same job on another GPU.

    Raises:
        DoesNotFit: a GPU's memory is too small for its share of the batch.
    """
    images = data.images or 0
    job = workload.count_workload(spec, images)
    ranks = workers * machine.gpus
    share = -(-min(spec.train.batch, images) // ranks)
    _check(model_profile, share, gpu, spec, ranks)
    compute = _pass(spec, model_profile, share, gpu, calibration.part if calibration else None) + LAUNCHES
    wait = max(_loading(spec, machine, workers, share * ranks, samples_per_core) - compute, 0.0)
    reducing = _reducing(model_profile, machine, workers, compute)
    validation = (data.val_images or 0) / ranks * _pass(spec, model_profile, 1, gpu, None) / TRAINING * 2
    steps = job.steps * job.epochs
    basis, factor = (Basis.SCALED, SCALED_FACTOR) if calibration else (Basis.PREDICTED, FACTOR)

    def about(seconds: float) -> Estimate:
        return Estimate.factor(seconds, factor).model_copy(update={"basis": basis})

    start = _start(data, machine, ranks, assumed)
    parts = {
        **start,
        TimePart.DATA_WAIT: about(wait * steps),
        TimePart.FORWARD: about(compute / TRAINING * steps),
        TimePart.BACKWARD: about(compute * (1 - 1 / TRAINING) * steps),
        TimePart.ALL_REDUCE: about(reducing * steps),
        TimePart.VALIDATION: about(validation * job.validations),
        TimePart.CHECKPOINT: Estimate.factor(model_profile.fixed_bytes / SAVING * job.saves, 3.0),
    }
    groups = {
        "computing": compute * steps,
        "waiting for data": wait * steps,
        "reducing gradients": reducing * steps,
        "the start": total(start.values()).value,
    }
    return Prediction(
        workers=workers,
        parts=parts,
        images_per_second=min(spec.train.batch, images) / (compute + wait + reducing),
        limit=max(groups, key=lambda name: groups[name]),
        notes=() if samples_per_core else ("how fast its CPUs load data is assumed",),
    )


def _start(data: DataFacts, machine: Machine, ranks: int, assumed: Assumptions) -> dict[TimePart, Estimate]:
    """What comes before the first step, by part."""
    provision, pull = assumed.provision_seconds, assumed.pull_mbps * 1e6
    return {
        TimePart.SCHEDULING: Estimate(value=provision, low=0.0, high=provision * 3, basis=Basis.PREDICTED),
        TimePart.IMAGE_PULL: Estimate.factor(assumed.image_gib * 2**30 * 8 / pull, 3.0),
        TimePart.RENDEZVOUS: Estimate.factor(prediction.RENDEZVOUS if ranks > 1 else 0.0, 3.0),
        TimePart.STAGING: Estimate.factor((data.bytes or 0) * 8 / min(machine.network * 1e9, pull), 3.0),
        TimePart.STARTUP: Estimate.factor(STARTUP, 2.0),
    }


def _loading(
    spec: YoloTrainingJobSpec, machine: Machine, workers: int, images: int, samples_per_core: float | None
) -> float:
    """Seconds in which the CPUs make so many samples."""
    rate = samples_per_core or SAMPLES_PER_CORE * (640 / spec.train.imgsz) ** 2
    return images / (rate * min(machine.cpus, LOADERS * machine.gpus) * workers)


def _reducing(model_profile: ModelProfile, machine: Machine, workers: int, compute: float) -> float:
    """Seconds of a step that reducing gradients adds."""
    ranks = workers * machine.gpus
    if ranks == 1:
        return 0.0
    link = Link(
        between="workers",
        latency_seconds=1e-4 if workers > 1 else 2e-5,
        bytes_per_second=machine.network * 1e9 / 8 * EFFICIENCY if workers > 1 else INSIDE,
    )
    return prediction.exposed(link, ranks, 4 * model_profile.parameters, compute * (1 - 1 / TRAINING))


class DoesNotFit(UserError):
    """The words say how much is missing, and which batch fits."""


def _check(model_profile: ModelProfile, share: int, gpu: Accelerator, spec: YoloTrainingJobSpec, ranks: int) -> None:
    """
    Raises:
        DoesNotFit: the memory of a GPU is too small.
    """
    memory = gpu.memory * 1e9 * 0.95  # the driver and CUDA itself keep some
    needed = model_profile.memory(share)
    if needed > memory:
        each = model_profile.memory(1) - model_profile.memory(0)
        fits = max(int((memory - model_profile.memory(0)) / each), 0) * ranks
        way = f"the largest batch that fits is {fits}" if fits else "not even one image of this size fits"
        raise DoesNotFit(
            f"batch {spec.train.batch} needs {needed / 2**30:.1f} GiB in each GPU, {(needed - memory) / 2**30:.1f} GiB more "
            f"than there are; {way}"
        )


def _pass(
    spec: YoloTrainingJobSpec, model_profile: ModelProfile, images: int, gpu: Accelerator, part: float | None
) -> float:
    """Seconds of a forward and a backward pass.

    Args:
        part: reached of the roofline; none takes what is assumed.
    """
    peak = gpu.single if spec.train.amp is False else gpu.half
    computing = TRAINING * model_profile.gflops * images / (peak * 1e3)
    moving = TRAFFIC * model_profile.activation_bytes * images / (gpu.bandwidth * 1e9)
    if part is None:
        return max(computing / COMPUTE, moving / MEMORY)
    return max(computing, moving) / part
