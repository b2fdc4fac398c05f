"""Constants shared by operator, trainer and local runs: API group, labels, environment, ports, exit codes.

These and the models are the whole interface between them; no other module repeats one of these values.
"""

from __future__ import annotations

import enum

GROUP = "yolojob.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "YoloTrainingJob"
PLURAL = "yolotrainingjobs"
SINGULAR = "yolotrainingjob"
SHORT_NAME = "ytj"

LABEL_JOB = f"{GROUP}/job-name"
LABEL_WORKER = f"{GROUP}/worker-index"
LABEL_WORKERS = f"{GROUP}/workers"
LABEL_ATTEMPT = f"{GROUP}/attempt"
LABEL_SPARE = f"{GROUP}/spare"
"""Label of a pod that only reserves resources for a larger attempt of an elastic job."""
ANNOTATION_GENERATION = f"{GROUP}/generation"
"""The job's metadata.generation when the pod was created."""
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGER = "yolojob"

CONTAINER = "trainer"
"""Name of the training container, in the operator's pods and in `spec.workers.template`."""

RENDEZVOUS_PORT = 29400
METRICS_PORT = 9400
"""Local rank 0 of a worker serves /metrics and /progress here, local rank r on METRICS_PORT + r."""

ENV_RUN = "YOLOJOB_RUN"
"""The worker's run as JSON (`yolojob.api.run.Run`)."""
ENV_OUTPUT_DIR = "YOLOJOB_OUTPUT_DIR"
"""Folder for checkpoints, weights and results; used by global rank 0 only."""
ENV_CACHE_DIR = "YOLOJOB_CACHE_DIR"
"""The node's folder for staged datasets and label caches."""
ENV_VOLUMES_DIR = "YOLOJOB_VOLUMES_DIR"
"""Folder in which `pvc://CLAIM/PATH` is `CLAIM/PATH`."""
ENV_WEIGHTS = "YOLOJOB_WEIGHTS"
"""URI of the folder with Ultralytics' official weights. Default: where Ultralytics publishes them."""
ENV_DATASETS = "YOLOJOB_DATASETS"
"""URI of the folder with the archives of `ultralytics://NAME`. Default: where Ultralytics publishes them."""
ENV_REDIRECT_HOSTS = "YOLOJOB_REDIRECT_HOSTS"
"""Hosts, separated by commas, to which a server may redirect a download although their addresses are not public."""
ENV_METRICS_PORT = "YOLOJOB_METRICS_PORT"
"""Metrics port of local rank 0. Default: METRICS_PORT. 0 serves no metrics."""
ENV_CPUS = "YOLOJOB_CPUS"
"""CPUs that the worker requested, for a cgroup without a CPU quota."""
ENV_TRACE_STEPS = "YOLOJOB_TRACE_STEPS"
"""Number of steps to record as a Chrome trace."""
ENV_MODE = "YOLOJOB_MODE"
"""One of `Mode`. Default: train."""
ENV_BENCH_SECONDS = "YOLOJOB_BENCH_SECONDS"
"""Duration of a bench's measurements in seconds."""
ENV_STARTED = "YOLOJOB_STARTED"
"""Start of the worker's first process, in seconds since 1970: the account of its time starts here."""
ENV_SECRET_FILE = "YOLOJOB_SECRET_FILE"  # noqa: S105 - a variable's name
"""File with the secret that all workers of a job share: at least 16 random bytes."""
ENV_RESERVED_DISK_SHARE = "YOLOJOB_RESERVED_DISK_SHARE"
"""Share of a disk that staging leaves free. Default: 0."""
ENV_STORE_FD = "YOLOJOB_STORE_FD"
"""File descriptor of the socket at which rank 0's key-value store listens; set by the launcher."""
ENV_TERMINATION_LOG = "YOLOJOB_TERMINATION_LOG"
"""File for the final report; Kubernetes takes its first 4096 bytes as the container's termination message."""

PREDICTIONS = "predictions.jpg"
"""File of a run with pictures of what the best model predicts."""
DATASET_CHECK = "check.json"
"""File with the result of a check."""
TERMINATION_LOG = "/dev/termination-log"
TERMINATION_LIMIT = 4096
"""Kubernetes' limit of a termination message, in bytes."""

MAX_NAME_LENGTH = 52
"""Limit of metadata.name: the pods' names NAME-worker-IIII are also their host names, DNS labels of at most 63
characters."""


class Mode(enum.StrEnum):
    """What a trainer does."""

    TRAIN = "train"
    TUNE = "tune"
    """Run the trials of spec.tuning, also if its mode is Off, and do not train."""
    BENCH = "bench"
    """Measure for a minute, and write no files."""
    INSPECT = "inspect"
    """Determine the size of model and dataset, and do not train."""
    CHECK = "check"
    """Check the dataset, and do not train."""


class ExitCode(enum.IntEnum):
    """Exit codes of a trainer process."""

    SUCCEEDED = 0
    FAILED = 1
    """The training failed; another attempt may succeed."""
    BAD_INPUT = 2
    """The spec or the data is invalid; another attempt would fail, too."""
    PEER_LOST = 76
    """The connection to another worker was lost; this worker is not the cause (EX_PROTOCOL of sysexits.h)."""
    INTERRUPTED = 143
    """Stopped by SIGTERM after saving the state (128 + 15, as shells report it)."""


def worker_name(job: str, index: int) -> str:
    """Name and host name of a worker's pod."""
    return f"{job}-worker-{index}"
