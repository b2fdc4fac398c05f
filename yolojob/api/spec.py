"""Defines the `spec` of a YoloTrainingJob. Rules between fields are in `yolojob.api.rules`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field

from yolojob.api.base import ApiModel
from yolojob.api.fields import MAX_INT32, AutoOrCount, AutoOrQuantity, DatasetUri, Quantity, StorageUri, WeightsUri
from yolojob.api.pod_template import PodTemplateSchema
from yolojob.api.task import Task, tasks_of_name
from yolojob.api.train_settings import TrainSettings

WholeSeconds = Annotated[int, Field(ge=0, le=MAX_INT32)]
PositiveSeconds = Annotated[int, Field(ge=1, le=MAX_INT32)]

# A file inside a dataset or a weights folder: a relative path that stays inside the folder.
FILE_PATTERN = r"^([^./][^/]*|\.[^./][^/]*)(/([^./][^/]*|\.[^./][^/]*))*$"
FileName = Annotated[str, Field(min_length=1, max_length=253, pattern=FILE_PATTERN)]


OFFICIAL_WEIGHTS = r"^yolov?[0-9]+[a-z0-9]*(-[a-z0-9]+)*[.]pt$"
"""Names of weights that Ultralytics may publish, such as yolo26n-seg.pt. The trainer knows each of them."""


SAFE_SUFFIX = ".safetensors"
WEIGHTS_SUFFIXES = (".pt", SAFE_SUFFIX)
"""Of the files of weights that the trainer reads."""


class Weights(ApiModel):
    """Starting weights of the training."""

    uri: WeightsUri
    """A .pt or .safetensors file to start from, or a folder that contains spec.model.name."""


class ModelRef(ApiModel):
    """The model to train."""

    name: FileName
    """Ultralytics' official weights (yolo26n.pt), an architecture of Ultralytics without weights (yolo26n.yaml), or a
    .yaml, .pt or .safetensors file inside spec.model.weights."""
    weights: Weights | None = None
    """Starting weights. Default: those that spec.model.name states, or random initialisation."""
    scale: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)] | None = None
    """Compound scale [depth, width, max_channels] instead of the architecture's own, for models smaller than n."""


class Dataset(ApiModel):
    """The training and validation data."""

    uri: DatasetUri
    """builtin://digits, a dataset that Ultralytics publishes (ultralytics://coco8), or a folder or an archive (.zip,
    .tar, .tar.gz) at pvc://CLAIM/PATH, s3://BUCKET/PATH, gs://BUCKET/PATH, https://HOST/PATH,
    oci://REGISTRY/REPOSITORY:TAG or, without a cluster, file:///PATH. Downloaded and unpacked files stay on the
    node."""
    config: FileName = "data.yaml"
    """The Ultralytics data file in the dataset. Its `download:` is never executed."""


class Gpu(ApiModel):
    """GPUs of each worker."""

    count: Annotated[int, Field(ge=1, le=64)] = 1
    """GPUs per worker."""
    types: Annotated[list[Annotated[str, Field(min_length=1, max_length=40)]], Field(max_length=16)] = Field(
        default_factory=list
    )
    """Acceptable GPU types (T4, L4, A100…), matched with the platform's node labels; empty means any."""
    required: bool = True
    """false: fall back to the CPU if the cluster has no such GPU."""
    resource: Annotated[str, Field(max_length=253, pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$")] = "nvidia.com/gpu"
    """Extended resource to request, for example nvidia.com/mig-1g.10gb."""


ResourceMap = Annotated[dict[str, Quantity], Field(max_length=32)]


class Resources(ApiModel):
    """Resources of the trainer container, as in any pod, without GPUs: see spec.workers.gpu."""

    requests: ResourceMap = Field(default_factory=dict)
    """Resources that the scheduler reserves."""
    limits: ResourceMap = Field(default_factory=dict)
    """Limits that the kubelet enforces."""


def _template(value: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(value) - {"metadata", "spec"})
    if unknown:
        raise ValueError(f"unknown field {unknown[0]}: a pod template has metadata and spec")
    return value


PodTemplate = Annotated[dict[str, Any], AfterValidator(_template), PodTemplateSchema]


class Workers(ApiModel):
    """The worker pods."""

    replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    """Number of worker pods. Without a cluster: number of worker processes."""
    processes_per_worker: AutoOrCount = "auto"
    """Training processes in each worker. auto: one per GPU, or one without GPUs."""
    gpu: Gpu | None = None
    """GPUs of each worker. Default: train on the CPU."""
    image: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """Trainer image. Default: set by the operator."""
    resources: Resources = Field(default_factory=Resources)
    """CPU and memory of each worker."""
    shared_memory: AutoOrQuantity = "auto"
    """Size of /dev/shm, which counts as memory. auto: half of the memory limit."""
    template: PodTemplate = Field(default_factory=dict)
    """Pod template that is merged into the operator's own (strategic merge); the container's name is `trainer`."""

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
    """The allowed numbers of workers of an attempt."""

    min_replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    """Smallest number of workers."""
    max_replicas: Annotated[int, Field(ge=1, le=1000)]
    """Largest number of workers."""


class Storage(ApiModel):
    """Storage of checkpoints, weights, results and logs."""

    uri: StorageUri
    """pvc://CLAIM/PATH (only worker 0 mounts it: ReadWriteOnce is enough), s3://BUCKET/PATH, gs://BUCKET/PATH or,
    without a cluster, file:///FOLDER. Files are uploaded to a bucket in the background."""


class Checkpoint(ApiModel):
    """When the state is saved, and how many checkpoints are kept."""

    every_epochs: Annotated[int, Field(ge=1, le=MAX_INT32)] = 1
    """Save after every Nth epoch."""
    every_seconds: PositiveSeconds = 300
    """Also save within an epoch when this time has passed since the last save."""
    keep: Annotated[int, Field(ge=2, le=100)] = 2
    """Number of checkpoints to keep; at least two, in case the newest one is damaged."""


class Scheduling(ApiModel):
    """Scheduling of the pods."""

    queue: Annotated[str, Field(max_length=253)] = ""
    """Queue of Kueue or Volcano."""
    gang: Literal["none", "kueue", "volcano", "coscheduling"] = "none"
    """Gang scheduler, which starts either all pods or none."""
    priority_class_name: Annotated[str, Field(max_length=253)] = ""
    """PriorityClass of the pods."""


class RunPolicy(ApiModel):
    """Suspension, retries, deadlines and clean-up, with the field names of Kubernetes' Job."""

    suspend: bool = False
    """Stop the pods and keep the checkpoint."""
    backoff_limit: Annotated[int, Field(ge=0, le=MAX_INT32)] = 3
    """Number of restarts after failures before the job fails. Preemption, eviction and lost nodes do not count; see
    disruptionLimit."""
    disruption_limit: Annotated[int, Field(ge=0, le=MAX_INT32)] = 20
    """Number of disruptions in a row, without progress between them, before the job fails."""
    active_deadline_seconds: PositiveSeconds | None = None
    """The job fails when it has been active for this time."""
    pre_running_deadline_seconds: PositiveSeconds | None = None
    """The job fails when an attempt is not running after this time."""
    ttl_seconds_after_finished: WholeSeconds | None = None
    """Delete the finished job after this time; 0 deletes it immediately."""
    clean_pod_policy: Literal["None", "Running", "All"] = "Running"
    """Which pods are deleted when the job has finished. Running pods of a failed job are always stopped, also with
    None."""
    managed_by: Annotated[str, Field(max_length=63)] | None = None
    """Name of the controller that manages the job instead of this operator; empty: this operator."""


class Tuning(ApiModel):
    """Short trials before the first epoch that choose the fastest settings which do not change the result."""

    mode: Literal["Off", "Auto"] = "Off"
    """Auto tries the settings that the job does not set: amp, channels_last, cache, workers, compile, and the
    micro-batch within the same global batch. It rejects settings that change the loss, or that do not pay off within
    the job."""
    max_seconds: PositiveSeconds = 120
    """Time limit of the trials."""


class Pricing(ApiModel):
    """The price of a worker. Default: the catalogue's price of the node's instance type."""

    machine: Annotated[str, Field(max_length=63)] | None = None
    """Machine of the catalogue whose price applies (g2-standard-4)."""
    spot: bool = False
    """Use the spot price."""
    per_worker_hour: Annotated[float, Field(ge=0)] | None = None
    """Price of one worker for one hour."""
    currency: Annotated[str, Field(pattern="^[A-Z]{3}$")] = "USD"
    """Currency of perWorkerHour (ISO 4217)."""
    budget: Annotated[float, Field(gt=0)] | None = None
    """Budget of the whole job, in its currency. The job is not stopped: metrics and an alert report when its expected
    cost exceeds the budget."""


class YoloTrainingJobSpec(ApiModel):
    """The desired training: model, dataset, settings, workers, storage and policies."""

    model_config = ConfigDict(title="spec")

    task: Annotated[Task, Field(strict=False)] | None = None
    """What the model predicts. Default: by its name (yolo26n-seg.yaml) or, for weights of your own, by their file."""
    model: ModelRef
    """The model to train."""
    dataset: Dataset
    """The training and validation data."""
    train: TrainSettings = Field(default_factory=TrainSettings)
    """Ultralytics' training settings."""
    workers: Workers = Field(default_factory=Workers)
    """The worker pods."""
    elastic: Elastic | None = None
    """Allowed numbers of workers. Default: the number of workers is fixed."""
    storage: Storage | None = None
    """Storage of checkpoints and results. Without it, they are lost when the pods are deleted."""
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)
    """When the state is saved."""
    scheduling: Scheduling = Field(default_factory=Scheduling)
    """Scheduling of the pods."""
    run_policy: RunPolicy = Field(default_factory=RunPolicy)
    """Suspension, retries, deadlines and clean-up."""
    tuning: Tuning = Field(default_factory=Tuning)
    """Trials before the first epoch."""
    pricing: Pricing = Field(default_factory=Pricing)
    """The price of a worker."""

    @property
    def stated_task(self) -> Task | None:
        """The task that the job states, directly or by the name of its model; None if only the model's file tells."""
        return self.task or next(iter(tasks_of_name(self.model.name)), None)
