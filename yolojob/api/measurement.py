"""Defines the results of benches and inspections: the input of `yolojob.estimation.prediction`.

Times are in seconds, sizes in bytes, rates per second. A value that was not measured is None, never 0.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PlainSerializer

from yolojob.api.base import ApiModel
from yolojob.api.fields import Count

# Rounded when written: in a cluster, a measurement is part of a termination message, which is limited to 4096 bytes.
Amount = Annotated[float, Field(ge=0), PlainSerializer(lambda value: float(f"{value:.6g}"), return_type=float)]


class Host(ApiModel):
    """The machine of worker 0."""

    cpu: str
    """Name of the CPU, from the kernel."""
    cores: Count
    """Cores that the worker may use."""
    memory: Count
    """Memory that the worker may use."""
    gpu: str | None = None
    gpus: Count = 0
    """GPUs of the worker."""
    gpu_memory: Count | None = None
    """Memory of each GPU."""
    system: str
    python: str
    torch: str
    ultralytics: str


class ModelProfile(ApiModel):
    """Size of the job's model, at the job's image size."""

    parameters: Count
    gflops: Amount
    """10^9 floating point operations of the forward pass of one image; a multiplication and an addition count as
    two."""
    activation_bytes: Count
    """Activations that the forward pass keeps for the backward pass, for one image, in the job's precision."""
    fixed_bytes: Count
    """Parameters, gradients, the optimizer's moments and the moving average."""

    def memory(self, images: int) -> int:
        """Memory in bytes for training this many images at once in one process."""
        return self.fixed_bytes + round(self.activation_bytes * images * ACTIVATION_OVERHEAD)


ACTIVATION_OVERHEAD = 1.25
"""Memory per kept activation: in addition to the activations, the backward pass's results, the loss's work space and
the batch need memory. Measured: docs/costs.md."""


class DataFacts(ApiModel):
    """Size of the dataset."""

    images: Count | None = None
    """Training images; None if the number is unknown until the dataset is unpacked."""
    val_images: Count | None = None
    bytes: Count | None = None
    """Bytes to stage."""


class Steps(ApiModel):
    """Training steps of one kind, without the first steps, which are slower."""

    with_mosaic: bool
    """Whether the steps use mosaic and related augmentations, which the last `close_mosaic` epochs do not use."""
    count: Count
    seconds: dict[str, Amount]
    """Mean seconds of a step by phase; without optimizer and ema, which are not part of every step."""
    deviation: Amount
    """Standard deviation of the step time."""


class MicrobatchPass(ApiModel):
    """A forward and a backward pass, without data loading and optimizer."""

    images: Count
    seconds: Amount
    shared_seconds: Amount | None = None
    """Seconds with half of the CPUs, while another process runs the same on the other half; None on a GPU."""


class Link(ApiModel):
    """Speed of the all-reduce of gradients."""

    between: Literal["workers", "processes"]
    """workers: the bench's workers. processes: two processes of one machine."""
    latency_seconds: Amount
    """Time of the smallest all-reduce."""
    bytes_per_second: Amount
    """Bus bandwidth of a ring: each worker sends and receives 2 (w - 1) / w of the gradients' bytes
    (https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md, "busbw")."""


class Rates(ApiModel):
    """Speed of data loading."""

    samples_per_core: Amount | None = None
    """Augmented training samples per second and process."""
    decoded_per_core: Amount | None = None
    """Images read and decoded per second and process."""
    disk_read: Amount | None = None
    disk_write: Amount | None = None
    store_read: Amount | None = None
    """From the dataset's object store, with one connection."""


class Energy(ApiModel):
    """Power during training."""

    watts: Amount
    source: Literal["nvml", "rapl"]
    """nvml: the GPUs' counters. rapl: the CPU packages' counters."""


class Measurement(ApiModel):
    """The result of a bench."""

    made_at: str
    """Time of the bench (RFC 3339)."""
    took_seconds: Amount
    """Duration of the measurements, without startup."""
    fingerprint: str
    """Hash of what was measured: model, dataset, batch, image size and everything else that determines the speed."""
    workers: Count
    world_size: Count
    device: str
    precision: str
    host: Host
    model_profile: ModelProfile
    data: DataFacts
    startup_seconds: Amount
    rendezvous_seconds: Amount
    staging_seconds: Amount
    cached_staging_seconds: Amount
    """Staging time when the dataset is already on the node."""
    steps: list[Steps]
    update_seconds: Amount
    """Seconds of optimizer and moving average per optimizer step."""
    microbatch_passes: list[MicrobatchPass]
    validation_seconds: Amount
    """Seconds to validate all validation images on all ranks; the shorter of the times of an early and of a later
    model."""
    validation_max_seconds: Amount
    """The longer of the two times: early in the training, a model detects more objects than there are."""
    checkpoint_seconds: Amount
    epoch_seconds: Amount
    """Other time between two epochs."""
    link: Link | None = None
    rates: Rates
    energy: Energy | None = None
