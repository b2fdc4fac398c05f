"""What a benchmark measured and what an inspection counted: the plain figures behind `yolojob.estimation.prediction`.

Times are in seconds, sizes in bytes, rates per second. A figure that was not measured is none, never 0.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PlainSerializer

from yolojob.api.base import ApiModel

# Rounded when it is written: in a cluster a measurement travels in a termination message, of 4096 bytes.
Amount = Annotated[float, Field(ge=0), PlainSerializer(lambda value: float(f"{value:.6g}"), return_type=float)]
Count = Annotated[int, Field(ge=0)]


class Host(ApiModel):
    """The machine under worker 0."""

    cpu: str
    """Its name, as the kernel has it."""
    cores: Count
    """That the worker may use."""
    memory: Count
    """That the worker may use."""
    gpu: str | None = None
    gpus: Count = 0
    """Of the worker."""
    gpu_memory: Count | None = None
    """Of each GPU."""
    system: str
    python: str
    torch: str
    ultralytics: str


class ModelProfile(ApiModel):
    """What the job's network is made of, at the job's image size."""

    parameters: Count
    gflops: Amount
    """Of the forward pass of one image, in 10^9 floating point operations; a multiplication and an addition are two."""
    activation_bytes: Count
    """That the forward pass keeps for the backward pass, for one image, in the job's precision."""
    fixed_bytes: Count
    """Parameters, gradients, the optimizer's moments and the moving average."""

    def memory(self, images: int) -> int:
        """Bytes for training so many images at once in one process."""
        return self.fixed_bytes + round(self.activation_bytes * images * TRANSIENT)


TRANSIENT = 1.25
"""Beside what is kept for the backward pass there are its own results, the loss' work space and the batch. Measured:
docs/costs.md."""


class DataFacts(ApiModel):
    """The data set."""

    images: Count | None = None
    """For training; none where that is only known once it is unpacked."""
    val_images: Count | None = None
    bytes: Count | None = None
    """To be staged."""


class Steps(ApiModel):
    """Training steps of one kind, after the first ones, which are slower."""

    with_mosaic: bool
    """With mosaic and its kin, which the last `close_mosaic` epochs do without."""
    count: Count
    seconds: dict[str, Amount]
    """Of a step by phase, mean; without optimizer and ema, which are not in every step."""
    deviation: Amount
    """Standard deviation of a step."""


class MicrobatchPass(ApiModel):
    """A forward and a backward pass alone, without data and optimizer."""

    images: Count
    seconds: Amount
    shared_seconds: Amount | None = None
    """With half of the CPUs, while another process computes the same on the other half; none on a GPU."""


class Link(ApiModel):
    """Reducing gradients among workers."""

    between: Literal["workers", "processes"]
    """workers: those of the bench. processes: two of this machine."""
    latency_seconds: Amount
    """Of the smallest reduction."""
    bytes_per_second: Amount
    """Of a ring: each worker sends and receives 2 (w - 1) / w of the gradients' bytes
    (https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md, "busbw")."""


class Rates(ApiModel):
    """What feeds the training."""

    samples_per_core: Amount | None = None
    """Augmented training samples per second and process."""
    decoded_per_core: Amount | None = None
    """Images read and decoded per second and process."""
    disk_read: Amount | None = None
    disk_write: Amount | None = None
    store_read: Amount | None = None
    """From the data set's object store, by one connection."""


class Energy(ApiModel):
    """Power while training."""

    watts: Amount
    source: Literal["nvml", "rapl"]
    """nvml: the GPUs' own counters. rapl: the CPU packages'."""


class Measurement(ApiModel):
    """The outcome of a bench."""

    made_at: str
    """RFC 3339."""
    took_seconds: Amount
    """After start-up."""
    fingerprint: str
    """Of what was measured: network, data set, batch, image size and all that the speed depends on."""
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
    """The same once the data set is on the node."""
    steps: list[Steps]
    update_seconds: Amount
    """Optimizer and moving average, of each optimizer step."""
    microbatch_passes: list[MicrobatchPass]
    validation_seconds: Amount
    """Of all validation images, by all ranks; the shorter one of an early network's and a later one's."""
    validation_max_seconds: Amount
    """The longer one: a network that has begun to learn sees more objects than there are."""
    checkpoint_seconds: Amount
    epoch_seconds: Amount
    """What else is between two epochs."""
    link: Link | None = None
    rates: Rates
    energy: Energy | None = None
