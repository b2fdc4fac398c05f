"""Predicts how long a job takes on a machine without measurements, from its GPUs' data sheets. Pure.

The roofline model (Williams, Waterman, Patterson: Roofline, CACM 2009): a pass takes as long as its operations at the
peak rate, or as its memory traffic at full bandwidth, whichever is longer; real models reach a fraction of either. If
the same job was measured on another GPU, the fraction measured there is used.
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

TRAINING_TO_FORWARD_RATIO = 3.0
"""Operations of forward and backward pass, divided by those of the forward pass: the backward pass computes two
gradients."""
ACTIVATION_TRANSFERS = 5.0
"""Memory transfers per kept activation: one write and one read in the forward pass; one read, and one write and one
read of its gradient, in the backward pass."""
COMPUTE_EFFICIENCY, BANDWIDTH_EFFICIENCY = 0.35, 0.6
"""Fractions of the peak rates that YOLO detectors reach. Assumed, not measured."""
STEP_OVERHEAD_SECONDS = 0.012
"""Fixed time of a step, independent of its images: it launches thousands of kernels. Assumed."""
SAMPLES_PER_SECOND_PER_CPU = 60.0
"""Augmented samples of 640 pixels per second and virtual CPU, without a bench; smaller images take less time.
Assumed."""
LOADERS_PER_GPU = 8
"""Loader processes per GPU, Ultralytics' default."""
NETWORK_EFFICIENCY = 0.7
"""Fraction of the network's rate that all-reduce reaches. Assumed."""
INTRA_NODE_BYTES_PER_SECOND = 10e9
"""All-reduce rate between GPUs of one machine: PCIe 4.0, or better. Assumed."""
STARTUP_SECONDS = 25.0
"""Time from a container's start to its first step: torch, CUDA, labels. Assumed."""
CHECKPOINT_BYTES_PER_SECOND = 200e6
"""Rate of writing a checkpoint to the storage. Assumed."""
PREDICTED_ERROR_FACTOR, CALIBRATED_ERROR_FACTOR = 2.0, 1.5
"""Factors by which predictions may be off, without and with a measurement of the job on another GPU."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The fraction of its roofline that a measured GPU reaches with this job."""

    efficiency: float
    """Seconds predicted by the roofline, divided by the measured seconds."""


def calibrate(spec: YoloTrainingJobSpec, measured: Measurement, gpu: Accelerator) -> Calibration:
    """The calibration by a bench of the same job on a GPU that is in the catalogue."""
    whole = measured.microbatch_passes[0]
    at_peak = pass_seconds(spec, measured.model_profile, whole.images, gpu, 1.0)
    return Calibration(efficiency=min(at_peak / whole.seconds, 1.0))


@dataclass(frozen=True, kw_only=True)
class RooflineModel:
    """Predicts one job on any machine."""

    spec: YoloTrainingJobSpec
    model_profile: ModelProfile
    data: DataFacts
    """Facts of the dataset; `images` must be known."""
    assumptions: Assumptions
    samples_per_core: float | None = None
    """Measured by a bench of the same job, on any machine."""
    calibration: Calibration | None = None
    """From a bench of the same job on another GPU."""

    def predict(self, machine: Machine, gpu: Accelerator, workers: int) -> Prediction:
        """Predict the job on machines of one type.

        Args:
            machine: each worker has one of its own.
            gpu: the machine's GPU.
            workers: number of workers.

        Raises:
            DoesNotFit: a GPU's memory is too small for its share of the batch.
        """
        spec, images = self.spec, self.data.images or 0
        job = workload.count_workload(spec, images)
        ranks = workers * machine.gpus
        images_per_rank = -(-min(spec.train.batch, images) // ranks)
        self._check_memory(gpu, images_per_rank, ranks)
        efficiency = self.calibration.efficiency if self.calibration else None
        compute = pass_seconds(spec, self.model_profile, images_per_rank, gpu, efficiency) + STEP_OVERHEAD_SECONDS
        data_wait = max(self._loading_seconds(machine, workers, images_per_rank * ranks) - compute, 0.0)
        all_reduce = self._all_reduce_seconds(machine, workers, compute)
        forward = pass_seconds(spec, self.model_profile, 1, gpu, None) / TRAINING_TO_FORWARD_RATIO
        validation = (self.data.val_images or 0) / ranks * forward * 2
        steps = job.steps * job.epochs
        start = self._start_parts(machine, ranks)
        saving = self.model_profile.fixed_bytes / CHECKPOINT_BYTES_PER_SECOND * job.saves
        parts = {
            **start,
            TimePart.DATA_WAIT: self._estimate(data_wait * steps),
            TimePart.FORWARD: self._estimate(compute / TRAINING_TO_FORWARD_RATIO * steps),
            TimePart.BACKWARD: self._estimate(compute * (1 - 1 / TRAINING_TO_FORWARD_RATIO) * steps),
            TimePart.ALL_REDUCE: self._estimate(all_reduce * steps),
            TimePart.VALIDATION: self._estimate(validation * job.validations),
            TimePart.CHECKPOINT: Estimate.within_factor(saving, 3.0),
        }
        groups = {
            "computing": compute * steps,
            "waiting for data": data_wait * steps,
            "reducing gradients": all_reduce * steps,
            "the start": total(start.values()).value,
        }
        return Prediction(
            workers=workers,
            parts=parts,
            images_per_second=min(spec.train.batch, images) / (compute + data_wait + all_reduce),
            limit=max(groups, key=lambda name: groups[name]),
            notes=() if self.samples_per_core else ("the data loading speed of its CPUs is assumed",),
        )

    def fits(self, machine: Machine, gpu: Accelerator, workers: int) -> bool:
        """Whether a GPU's memory is large enough for its share of the batch."""
        images_per_rank = -(-min(self.spec.train.batch, self.data.images or 1) // (workers * machine.gpus))
        return self.model_profile.memory(images_per_rank) <= _usable_memory(gpu)

    def _estimate(self, seconds: float) -> Estimate:
        if self.calibration is None:
            return Estimate.within_factor(seconds, PREDICTED_ERROR_FACTOR)
        estimate = Estimate.within_factor(seconds, CALIBRATED_ERROR_FACTOR)
        return estimate.model_copy(update={"basis": Basis.SCALED})

    def _start_parts(self, machine: Machine, ranks: int) -> dict[TimePart, Estimate]:
        """Seconds before the first step, by part."""
        provision, pull_bits = self.assumptions.provision_seconds, self.assumptions.pull_mbps * 1e6
        download_bits = min(machine.network * 1e9, pull_bits)
        return {
            TimePart.SCHEDULING: Estimate(value=provision, low=0.0, high=provision * 3, basis=Basis.PREDICTED),
            TimePart.IMAGE_PULL: Estimate.within_factor(self.assumptions.image_gib * 2**30 * 8 / pull_bits, 3.0),
            TimePart.RENDEZVOUS: Estimate.within_factor(prediction.RENDEZVOUS_SECONDS if ranks > 1 else 0.0, 3.0),
            TimePart.STAGING: Estimate.within_factor((self.data.bytes or 0) * 8 / download_bits, 3.0),
            TimePart.STARTUP: Estimate.within_factor(STARTUP_SECONDS, 2.0),
        }

    def _loading_seconds(self, machine: Machine, workers: int, images: int) -> float:
        """Seconds in which the CPUs of all workers load this many samples."""
        rate = self.samples_per_core or SAMPLES_PER_SECOND_PER_CPU * (640 / self.spec.train.imgsz) ** 2
        return images / (rate * min(machine.cpus, LOADERS_PER_GPU * machine.gpus) * workers)

    def _all_reduce_seconds(self, machine: Machine, workers: int, compute: float) -> float:
        """Seconds that all-reduce adds to a step."""
        ranks = workers * machine.gpus
        if ranks == 1:
            return 0.0
        network = machine.network * 1e9 / 8 * NETWORK_EFFICIENCY
        link = Link(
            between="workers",
            latency_seconds=1e-4 if workers > 1 else 2e-5,
            bytes_per_second=network if workers > 1 else INTRA_NODE_BYTES_PER_SECOND,
        )
        backward = compute * (1 - 1 / TRAINING_TO_FORWARD_RATIO)
        return prediction.exposed_all_reduce_seconds(link, ranks, 4 * self.model_profile.parameters, backward)

    def _check_memory(self, gpu: Accelerator, images_per_rank: int, ranks: int) -> None:
        """
        Raises:
            DoesNotFit: the memory of a GPU is too small.
        """
        available, required = _usable_memory(gpu), self.model_profile.memory(images_per_rank)
        if required <= available:
            return
        fixed = self.model_profile.memory(0)
        per_image = self.model_profile.memory(1) - fixed
        largest_batch = max(int((available - fixed) / per_image), 0) * ranks
        hint = f"the largest batch that fits is {largest_batch}" if largest_batch else "not even one image fits"
        raise DoesNotFit(
            f"batch {self.spec.train.batch} needs {required / 2**30:.1f} GiB in each GPU, "
            f"{(required - available) / 2**30:.1f} GiB more than available; {hint}"
        )


class DoesNotFit(UserError):
    """The job does not fit into a GPU's memory; the message says how much is missing, and which batch fits."""


def _usable_memory(gpu: Accelerator) -> float:
    """Bytes of a GPU's memory for training: the driver and CUDA use the rest."""
    return gpu.memory * 1e9 * 0.95


def pass_seconds(
    spec: YoloTrainingJobSpec, model_profile: ModelProfile, images: int, gpu: Accelerator, efficiency: float | None
) -> float:
    """Seconds of a forward and a backward pass.

    Args:
        spec: the job; its precision selects the peak rate.
        model_profile: size of the model.
        images: images in the pass.
        gpu: the GPU.
        efficiency: measured fraction of the roofline; None for the assumed efficiencies.
    """
    peak = gpu.single if spec.train.amp is False else gpu.half
    computing = TRAINING_TO_FORWARD_RATIO * model_profile.gflops * images / (peak * 1e3)
    moving = ACTIVATION_TRANSFERS * model_profile.activation_bytes * images / (gpu.bandwidth * 1e9)
    if efficiency is None:
        return max(computing / COMPUTE_EFFICIENCY, moving / BANDWIDTH_EFFICIENCY)
    return max(computing, moving) / efficiency
