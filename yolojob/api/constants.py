"""The words that operator, trainer and local runner share: API group, labels, environment, ports, exit codes.

Nothing else is agreed between them, and nobody spells one of these words out anywhere else.
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
"""A pod that only looks for room, for a larger attempt of an elastic job."""
ANNOTATION_GENERATION = f"{GROUP}/generation"
"""The job's metadata.generation when a pod was made."""
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGER = "yolojob"

CONTAINER = "trainer"
"""Name of the container that trains, in the operator's pods and in `spec.workers.template`."""

RENDEZVOUS_PORT = 29400
METRICS_PORT = 9400
"""Local rank 0 of a worker serves /metrics and /progress here, local rank r on METRICS_PORT + r."""

ENV_RUN = "YOLOJOB_RUN"
"""The run that this worker belongs to, as JSON (`yolojob.api.run.Run`)."""
ENV_OUTPUT_DIR = "YOLOJOB_OUTPUT_DIR"
"""Folder for checkpoints, weights and results. Only global rank 0 uses it."""
ENV_CACHE_DIR = "YOLOJOB_CACHE_DIR"
"""Folder of this node for staged data sets and label caches."""
ENV_VOLUMES_DIR = "YOLOJOB_VOLUMES_DIR"
"""Folder in which `pvc://CLAIM/PATH` is `CLAIM/PATH`."""
ENV_METRICS_PORT = "YOLOJOB_METRICS_PORT"
"""Port of local rank 0; METRICS_PORT unless set. 0 serves nothing."""
ENV_CPUS = "YOLOJOB_CPUS"
"""CPUs that the worker was promised, where its cgroup has no quota to tell by."""
ENV_TRACE_STEPS = "YOLOJOB_TRACE_STEPS"
"""So many steps are recorded as a Chrome trace."""
ENV_MODE = "YOLOJOB_MODE"
"""One of `Mode`; to train, unless set."""
ENV_BENCH_SECONDS = "YOLOJOB_BENCH_SECONDS"
"""Time for the measurements of a bench."""
ENV_STARTED = "YOLOJOB_STARTED"
"""When the worker's first process began, seconds since 1970: from there on its time is accounted for."""
ENV_LAUNCHED = "YOLOJOB_LAUNCHED"
"""When it went to wait for the other workers, seconds since 1970; only where torchrun does that."""
ENV_TERMINATION_LOG = "YOLOJOB_TERMINATION_LOG"
"""File for the final report; Kubernetes takes its first 4096 bytes as the container's termination message."""

TERMINATION_LOG = "/dev/termination-log"
TERMINATION_LIMIT = 4096

MAX_NAME_LENGTH = 52
"""A pod is called NAME-worker-IIII and its name is its host name: a DNS label of 63 characters."""


class Mode(enum.StrEnum):
    """What a trainer is started for."""

    TRAIN = "train"
    TUNE = "tune"
    """Make the trials of spec.tuning, whatever its mode, and train nothing."""
    BENCH = "bench"
    """Measure for a minute, and keep nothing."""
    INSPECT = "inspect"
    """Count what network and data are made of, and train nothing."""


class ExitCode(enum.IntEnum):
    """How a trainer process ends. torchrun hides these behind its own 1; `yolojob_trainer.launch` hands them on."""

    SUCCEEDED = 0
    FAILED = 1
    """The training failed; another attempt may do better."""
    BAD_INPUT = 2
    """The specification or the data is wrong; no attempt will do better."""
    PEER_LOST = 76
    """Another worker went away. Not this worker's fault (EX_PROTOCOL of sysexits.h)."""
    INTERRUPTED = 143
    """Asked to stop by SIGTERM; the state was saved (128 + 15, as a shell says it)."""


def worker_name(job: str, index: int) -> str:
    """Name of a worker's pod, and its host name."""
    return f"{job}-worker-{index}"
