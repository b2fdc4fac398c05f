"""Defines all reasons that yolojob uses in conditions, events, attempts and failures.

Kubernetes' own reasons (ImagePullBackOff, Evicted) are passed on unchanged and are not listed here.
docs/troubleshooting.md has a row for each member; a test compares them.
"""

from __future__ import annotations

import enum


class Reason(enum.StrEnum):
    """A CamelCase word, as Kubernetes requires."""

    # The operator accepts or rejects a job.
    ACCEPTED = "Accepted"
    INVALID_SPEC = "InvalidSpec"
    LAPTOP_ONLY = "LaptopOnly"
    NODES_UNKNOWN = "NodesUnknown"
    NO_GPU = "NoGpu"
    NO_STORAGE = "NoStorage"
    TEMPLATE_FORBIDDEN = "TemplateForbidden"
    TEMPLATE_INVALID = "TemplateInvalid"

    # The pods are created and get their nodes.
    EDIT_PENDING = "EditPending"
    FAILED_CREATE = "FailedCreate"
    GATED = "Gated"
    NETWORK_POLICY_FORBIDDEN = "NetworkPolicyForbidden"
    NETWORK_POLICY_INVALID = "NetworkPolicyInvalid"
    NAME_CONFLICT = "NameConflict"
    NO_GANG_SCHEDULER = "NoGangScheduler"
    POD_FORBIDDEN = "PodForbidden"
    POD_GROUP_FORBIDDEN = "PodGroupForbidden"
    POD_GROUP_INVALID = "PodGroupInvalid"
    POD_INVALID = "PodInvalid"
    QUOTA_EXCEEDED = "QuotaExceeded"
    SCHEDULED = "Scheduled"
    SCHEDULING = "Scheduling"
    SECRET_FORBIDDEN = "SecretForbidden"  # noqa: S105 - a reason
    SECRET_INVALID = "SecretInvalid"  # noqa: S105 - a reason
    SERVICE_FORBIDDEN = "ServiceForbidden"
    SERVICE_INVALID = "ServiceInvalid"
    UNSCHEDULABLE = "Unschedulable"

    # An attempt runs.
    RUNNING = "Running"
    STARTING = "Starting"
    WAITING = "Waiting"

    # An attempt ends, and another follows.
    NODE_LOST = "NodeLost"
    PEER_LOST = "PeerLost"
    PEER_SILENT = "PeerSilent"
    POD_DELETED = "PodDeleted"
    POD_TERMINATING = "PodTerminating"
    RESTARTING = "Restarting"
    RESUMED = "Resumed"
    SCALED_DOWN = "ScaledDown"
    SCALED_UP = "ScaledUp"
    SPEC_CHANGED = "SpecChanged"
    SUSPENDED = "Suspended"

    # The job ends.
    BACKOFF_LIMIT_EXCEEDED = "BackoffLimitExceeded"
    DISRUPTION_LIMIT_EXCEEDED = "DisruptionLimitExceeded"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    FAILED = "Failed"
    PRE_RUNNING_DEADLINE_EXCEEDED = "PreRunningDeadlineExceeded"
    SUCCEEDED = "Succeeded"
    TRAINING_COMPLETED = "TrainingCompleted"

    # A trainer ends: its input is wrong.
    BATCH_TOO_SMALL = "BatchTooSmall"
    CACHE_FAILED = "CacheFailed"
    DATASET_NOT_FOUND = "DatasetNotFound"
    DIFFERENT_RUN = "DifferentRun"
    INVALID_ARCHIVE = "InvalidArchive"
    INVALID_ARTIFACT = "InvalidArtifact"
    INVALID_DATASET = "InvalidDataset"
    INVALID_ENVIRONMENT = "InvalidEnvironment"
    INVALID_MODEL = "InvalidModel"
    INVALID_RUN = "InvalidRun"
    INVALID_SETTINGS = "InvalidSettings"
    INVALID_WEIGHTS = "InvalidWeights"
    MODEL_NOT_FOUND = "ModelNotFound"
    NOT_ENOUGH_GPUS = "NotEnoughGpus"
    NO_RUN = "NoRun"
    NO_SPACE = "NoSpace"
    STORAGE_IN_USE = "StorageInUse"
    STORAGE_DENIED = "StorageDenied"
    STORAGE_NOT_FOUND = "StorageNotFound"
    STORAGE_UNSUPPORTED = "StorageUnsupported"
    STORAGE_UNTRUSTED = "StorageUntrusted"
    WEIGHTS_NOT_FOUND = "WeightsNotFound"

    # A trainer ends: another attempt may succeed.
    INTERRUPTED = "Interrupted"
    NO_WORKING_GPU = "NoWorkingGpu"
    NON_FINITE_LOSS = "NonFiniteLoss"
    LIMIT_EXCEEDED = "LimitExceeded"
    OOM_KILLED = "OOMKilled"
    OUT_OF_MEMORY = "OutOfMemory"
    STORAGE_FAILED = "StorageFailed"
    STORAGE_UNAVAILABLE = "StorageUnavailable"
    TRAINER_ENDED = "TrainerEnded"
    TRAINING_FAILED = "TrainingFailed"
