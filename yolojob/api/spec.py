"""`spec` of a YoloTrainingJob: what the user asks for. Rules between fields stand in `yolojob.api.rules`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, WithJsonSchema

from yolojob.api.base import ApiModel
from yolojob.api.fields import AutoOrCount, AutoOrQuantity, DatasetUri, Quantity, StorageUri, WeightsUri
from yolojob.api.train_settings import TrainSettings

MAX_INT32 = 2**31 - 1
"""The largest whole number that stands for a time or a count, as in Kubernetes' own objects; 68 years."""
Seconds = Annotated[int, Field(ge=0, le=MAX_INT32)]
PositiveSeconds = Annotated[int, Field(ge=1, le=MAX_INT32)]

# A file name inside a data set or a weights folder: relative, and not out of it.
FILE_PATTERN = r"^([^./][^/]*|\.[^./][^/]*)(/([^./][^/]*|\.[^./][^/]*))*$"
FileName = Annotated[str, Field(min_length=1, max_length=253, pattern=FILE_PATTERN)]


class Weights(ApiModel):
    """Starting point of the training."""

    uri: WeightsUri
    """A .pt file to start from, or a folder that holds spec.model.name."""


class ModelRef(ApiModel):
    """What is trained."""

    name: FileName
    """An Ultralytics architecture (yolo26n.yaml), or a .yaml or .pt file inside spec.model.weights."""
    weights: Weights | None = None
    """Where to start from; without it the weights are initialised at random."""
    scale: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)] | None = None
    """Compound scale [depth, width, max_channels] in place of the architecture's own, for models smaller than n."""


class Dataset(ApiModel):
    """What it is trained on."""

    uri: DatasetUri
    """builtin://digits, a folder or an archive (.zip, .tar, .tar.gz) at pvc://CLAIM/PATH, s3://BUCKET/PATH,
    gs://BUCKET/PATH, https://HOST/PATH or, on a laptop, file:///PATH. What is fetched or unpacked is kept on the node."""
    config: FileName = "data.yaml"
    """The Ultralytics data file inside it. A `download:` in it is never run."""


class Gpu(ApiModel):
    """GPUs of each worker."""

    count: Annotated[int, Field(ge=1, le=64)] = 1
    """GPUs per worker."""
    types: Annotated[list[Annotated[str, Field(min_length=1, max_length=40)]], Field(max_length=16)] = Field(
        default_factory=list
    )
    """Acceptable GPU types (T4, L4, A100…), by whatever label the platform names them; empty means any."""
    required: bool = True
    """false: fall back to the CPU where the cluster has no such GPU."""
    resource: Annotated[str, Field(max_length=253, pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$")] = "nvidia.com/gpu"
    """Extended resource to ask for, for example nvidia.com/mig-1g.10gb."""


ResourceMap = dict[str, Quantity]


class Resources(ApiModel):
    """Resources of the trainer container, as in any pod. GPUs belong in spec.workers.gpu."""

    requests: ResourceMap = Field(default_factory=dict)
    """What the scheduler reserves."""
    limits: ResourceMap = Field(default_factory=dict)
    """What the kubelet enforces."""


def _template(value: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(value) - {"metadata", "spec"})
    if unknown:
        raise ValueError(f"a pod template has metadata and spec, not {unknown[0]}")
    return value


_FREE_FORM = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
PodTemplate = Annotated[
    dict[str, Any],
    AfterValidator(_template),
    WithJsonSchema({"type": "object", "properties": {"metadata": _FREE_FORM, "spec": _FREE_FORM}}),
]


class Workers(ApiModel):
    """The pods that train together."""

    replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    """Number of worker pods; here, without a cluster, of worker processes."""
    processes_per_worker: AutoOrCount = "auto"
    """Training processes in each worker. auto: one per GPU, or one."""
    gpu: Gpu | None = None
    """GPUs of each worker; none trains on the CPU."""
    image: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """Trainer image; the operator's default unless set."""
    resources: Resources = Field(default_factory=Resources)
    """CPU and memory of each worker."""
    shared_memory: AutoOrQuantity = "auto"
    """Size of /dev/shm, which is memory. auto: half of the memory limit."""
    template: PodTemplate = Field(default_factory=dict)
    """Pod template laid over the operator's own (strategic merge); the container is called `trainer`."""

    @property
    def processes(self) -> int:
        """Training processes per worker."""
        if isinstance(self.processes_per_worker, int):
            return self.processes_per_worker
        return self.gpu.count if self.gpu else 1

    @property
    def world_size(self) -> int:
        """Training processes of the whole job."""
        return self.replicas * self.processes


class Elastic(ApiModel):
    """How few and how many workers an attempt may have."""

    min_replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    """Go on with no fewer workers than this."""
    max_replicas: Annotated[int, Field(ge=1, le=1000)]
    """Never use more workers than this."""


class Storage(ApiModel):
    """Where checkpoints, weights, results and logs go."""

    uri: StorageUri
    """pvc://CLAIM/PATH (only worker 0 mounts it: ReadWriteOnce is enough), s3://BUCKET/PATH, gs://BUCKET/PATH or, on a
    laptop, file:///FOLDER. To a bucket, files are uploaded in the background."""


class Checkpoint(ApiModel):
    """When the state is saved, and how often it is kept."""

    every_epochs: Annotated[int, Field(ge=1, le=MAX_INT32)] = 1
    """Save after every Nth epoch."""
    every_seconds: PositiveSeconds = 300
    """Save within an epoch when the last save is this long ago."""
    keep: Annotated[int, Field(ge=2, le=100)] = 2
    """Checkpoints kept; at least two, so that a broken newest one loses little."""


class Scheduling(ApiModel):
    """How the pods are placed together."""

    queue: Annotated[str, Field(max_length=253)] = ""
    """Queue of Kueue or Volcano."""
    gang: Literal["none", "kueue", "volcano", "coscheduling"] = "none"
    """Who places all pods together or none."""
    priority_class_name: Annotated[str, Field(max_length=253)] = ""
    """PriorityClass of the pods."""


class RunPolicy(ApiModel):
    """The job's life, with the field names of Kubernetes' Job."""

    suspend: bool = False
    """Stop the pods, keep the checkpoint."""
    backoff_limit: Annotated[int, Field(ge=0, le=MAX_INT32)] = 3
    """Restarts after failures before the job fails. Preemption, eviction and lost nodes do not count."""
    active_deadline_seconds: PositiveSeconds | None = None
    """Fail when the job has been active for so long."""
    pre_running_deadline_seconds: PositiveSeconds | None = None
    """Fail when an attempt is not running after so long."""
    ttl_seconds_after_finished: Seconds | None = None
    """Delete the finished job after so long; 0 at once."""
    clean_pod_policy: Literal["None", "Running", "All"] = "Running"
    """Which pods are deleted when the job has finished. Of one that failed none goes on, also with None."""
    managed_by: Annotated[str, Field(max_length=63)] | None = None
    """A controller other than this operator looks after the job."""


class Tuning(ApiModel):
    """Short trials before the first epoch that choose what does not change the result."""

    mode: Literal["Off", "Auto"] = "Off"
    """Auto tries what the job leaves open: amp, channels_last, cache, workers, compile, and the micro-batch under the same
    global batch. What changes the loss, or does not pay back within the job, is refused."""
    max_seconds: PositiveSeconds = 120
    """Time for the trials."""


class Pricing(ApiModel):
    """What an hour costs; empty takes it from the node's instance type."""

    machine: Annotated[str, Field(max_length=63)] | None = None
    """Machine of the price catalogue (g2-standard-4)."""
    spot: bool = False
    """Take the spot price."""
    per_worker_hour: Annotated[float, Field(ge=0)] | None = None
    """Price of one worker for one hour."""
    currency: Annotated[str, Field(pattern="^[A-Z]{3}$")] = "USD"
    """Currency of per_worker_hour (ISO 4217)."""
    budget: Annotated[float, Field(gt=0)] | None = None
    """What the whole job may cost, in its currency. Nothing stops at it: the metrics and an alert tell when it is passed, or
    will be."""


class YoloTrainingJobSpec(ApiModel):
    """What is trained, on what, by how many, and what happens when it ends."""

    model_config = ConfigDict(title="spec")

    model: ModelRef
    """What is trained."""
    dataset: Dataset
    """What it is trained on."""
    train: TrainSettings = Field(default_factory=TrainSettings)
    """Ultralytics' training settings."""
    workers: Workers = Field(default_factory=Workers)
    """The pods that train together."""
    elastic: Elastic | None = None
    """Attempts of different size; without it the number of workers is fixed."""
    storage: Storage | None = None
    """Where checkpoints and results go; without it they are lost with the pod."""
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)
    """When the state is saved."""
    scheduling: Scheduling = Field(default_factory=Scheduling)
    """How the pods are placed together."""
    run_policy: RunPolicy = Field(default_factory=RunPolicy)
    """Suspension, retries, deadlines, cleaning up."""
    tuning: Tuning = Field(default_factory=Tuning)
    """Trials before the first epoch."""
    pricing: Pricing = Field(default_factory=Pricing)
    """What an hour costs."""
