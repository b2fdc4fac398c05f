"""Extracts from a pod's API object the facts that the plan uses. Pure."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from yolojob.api import constants
from yolojob.api.constants import ExitCode
from yolojob_operator.kube.types import Body
from yolojob_operator.objects import gang_scheduling

GRACE_SECONDS = 30
"""Kubernetes' default of terminationGracePeriodSeconds."""
SIGKILL_EXIT_CODE = 137
"""128 + SIGKILL: the exit code of a container that is killed at the end of its grace period."""


class Cause(enum.StrEnum):
    """Why a pod failed, in the order of precedence."""

    PERMANENT = "Permanent"
    """Specification or data are wrong: another attempt fails as well."""
    DISRUPTION = "Disruption"
    """Preemption, eviction, drain, lost node: not the job's fault, and not counted."""
    FAILURE = "Failure"
    """Counted against backoffLimit."""
    SURVIVOR = "Survivor"
    """The pod exited because it lost a peer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodFacts:
    """What the plan uses of one worker pod."""

    name: str
    uid: str
    version: int = 0
    """resourceVersion."""
    owner_uid: str
    index: int
    attempt: int
    workers: int = 0
    """Number of workers in its attempt; 0 if the label is missing."""
    phase: str
    node: str = ""
    ip: str = ""
    ready: bool = False
    created: datetime | None = None
    scheduled: datetime | None = None
    started: datetime | None = None
    """When the trainer container started."""
    finished: datetime | None = None
    deleted: datetime | None = None
    """When the grace period of its deletion ends; None unless it is being deleted."""
    grace_seconds: int = GRACE_SECONDS
    """Grace period of its deletion."""
    finalizers: tuple[str, ...] = ()
    exit_code: int | None = None
    exit_reason: str = ""
    message: str = ""
    """Termination message of the trainer container."""
    memory_limit: str = ""
    disruption: str = ""
    """Reason and message of a disruption, from the pod's conditions."""
    kueue_group: str = ""
    """Name of its Kueue pod group, while it has Kueue's finalizer."""
    limit_exceeded: str = ""
    """Message of the kubelet that evicted it because it used more than its own limit of storage."""
    gated: bool = False
    """A queue holds it with a scheduling gate."""
    waiting: str = ""
    """Why it does not start: "Unschedulable: 0/3 nodes are available…", "ImagePullBackOff: …"."""

    image: str = ""
    """Image of its trainer container."""
    generation: int = 0
    """metadata.generation of the job when the pod was created; 0 if the annotation is missing."""
    lingers: bool = False
    """Its trainer has ended while another container still runs: the pod's own phase is Running."""

    @property
    def terminal(self) -> bool:
        return self.phase in ("Succeeded", "Failed")

    @property
    def cause(self) -> Cause | None:
        """Why it failed; None while it runs and when it succeeded."""
        if self.disruption and self.phase != "Succeeded":
            return Cause.DISRUPTION
        if self.phase != "Failed":
            return None
        if self.exit_code == ExitCode.BAD_INPUT:
            return Cause.PERMANENT
        if self.limit_exceeded:
            return Cause.FAILURE
        if self.deleted and self.exit_code in (ExitCode.INTERRUPTED, SIGKILL_EXIT_CODE):
            return Cause.DISRUPTION
        if self.exit_code in (ExitCode.INTERRUPTED, ExitCode.PEER_LOST):
            # A signal that no deletion and no kubelet explains: a peer was asked to stop, or the pod stops itself.
            return Cause.SURVIVOR
        return Cause.FAILURE


_DISRUPTED_REASONS = (
    "Evicted",
    "Shutdown",
    "NodeShutdown",
    "Terminated",
    "NodeLost",
    "Preempting",
    "NodeAffinity",
    "UnexpectedAdmissionError",
    "TopologyAffinityError",
    "OutOf",
)
"""Prefixes of `status.reason` of pods that the kubelet or the node lifecycle controller ended or did not admit. OutOf
stands for OutOfcpu, OutOfmemory, OutOfnvidia.com/gpu (pkg/kubelet/lifecycle/predicate.go)."""
_OWN_LIMIT = re.compile(r"exceeds the (total )?limit|exceeded its local ephemeral storage limit")
"""In the messages of evictions for which a pod's own limit is the cause, not the node
(pkg/kubelet/eviction/helpers.go)."""
_UNKNOWN = "ContainerStatusUnknown"
"""Reason of a container whose end no kubelet observed, because its node was restarted."""


def _time(text: Any) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def pod_facts(body: Body) -> PodFacts:
    """The facts of a worker pod's API object."""
    metadata, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    labels = metadata.get("labels") or {}
    conditions = {c["type"]: c for c in status.get("conditions") or ()}
    containers = status.get("containerStatuses") or ()
    trainer: Body = next((c for c in containers if c.get("name") == constants.CONTAINER), {})
    state = trainer.get("state") or {}
    terminated = state.get("terminated") or {}
    running = state.get("running") or {}
    container: Body = next((c for c in spec.get("containers") or () if c["name"] == constants.CONTAINER), {})
    limits: Body = (container.get("resources") or {}).get("limits") or {}
    owner: Body = next((o for o in metadata.get("ownerReferences") or () if o.get("controller")), {})
    phase = status.get("phase", "Pending")
    # When all containers have ended, the kubelet still reports Running for a moment; the final phase follows.
    lingers = phase == "Running" and bool(terminated) and any("running" in (c.get("state") or {}) for c in containers)
    if lingers:
        phase = "Failed" if terminated.get("exitCode") else "Succeeded"
    disruption = _disruption(conditions, status, terminated)
    if phase == "Failed" and terminated.get("exitCode") == 0 and not (disruption or status.get("reason")):
        phase = "Succeeded"  # the trainer succeeded; a sidecar failed
    return PodFacts(
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        version=_number(metadata.get("resourceVersion")),
        owner_uid=owner.get("uid", ""),
        index=_number(labels.get(constants.LABEL_WORKER)),
        attempt=_number(labels.get(constants.LABEL_ATTEMPT)),
        workers=max(_number(labels.get(constants.LABEL_WORKERS)), 0),
        generation=max(_number((metadata.get("annotations") or {}).get(constants.ANNOTATION_GENERATION)), 0),
        phase=phase,
        image=str(container.get("image") or ""),
        lingers=lingers,
        node=spec.get("nodeName") or "",
        ip=status.get("podIP") or "",
        ready=conditions.get("Ready", {}).get("status") == "True",
        created=_time(metadata.get("creationTimestamp")),
        scheduled=_transition(conditions, "PodScheduled"),
        started=_time(running.get("startedAt") or terminated.get("startedAt")),
        finished=_time(terminated.get("finishedAt")),
        deleted=_time(metadata.get("deletionTimestamp")),
        finalizers=tuple(str(name) for name in metadata.get("finalizers") or ()),
        grace_seconds=_seconds(spec.get("terminationGracePeriodSeconds")),
        exit_code=terminated.get("exitCode"),
        exit_reason=terminated.get("reason") or "",
        message=terminated.get("message") or _failure(status),
        memory_limit=str(limits.get("memory", "")),
        disruption=disruption,
        limit_exceeded=_limit_exceeded(status),
        kueue_group=_kueue_group(metadata),
        gated=bool(spec.get("schedulingGates")),
        waiting=_waiting(conditions, status),
    )


def _kueue_group(metadata: Body) -> str:
    has_finalizer = gang_scheduling.KUEUE_FINALIZER in (metadata.get("finalizers") or ())
    return str((metadata.get("labels") or {}).get(gang_scheduling.KUEUE_GROUP, "")) if has_finalizer else ""


def _number(text: Any) -> int:
    """The number that a label or a resourceVersion holds; -1 if it holds none."""
    return int(text) if isinstance(text, str) and re.fullmatch(r"[0-9]{1,20}", text) else -1


def _seconds(value: Any) -> int:
    return value if type(value) is int and value >= 0 else GRACE_SECONDS


def _transition(conditions: Mapping[str, Body], kind: str) -> datetime | None:
    condition = conditions.get(kind, {})
    return _time(condition.get("lastTransitionTime")) if condition.get("status") == "True" else None


def _disruption(conditions: Mapping[str, Body], status: Body, terminated: Body) -> str:
    for kind in ("DisruptionTarget", "TerminationTarget"):  # the second one is Kueue's
        condition = conditions.get(kind, {})
        if condition.get("status") == "True":
            return f"{condition.get('reason', 'Disruption')}: {condition.get('message', '')}".strip(": ")
    evicted = str(status.get("reason", "")).startswith(_DISRUPTED_REASONS)
    if status.get("phase") == "Failed" and evicted and not _limit_exceeded(status):
        return f"{status['reason']}: {status.get('message', '')}".strip(": ")
    if terminated.get("reason") == _UNKNOWN:
        return f"{_UNKNOWN}: {terminated.get('message', '')}".strip(": ")
    return ""


def _limit_exceeded(status: Body) -> str:
    message = str(status.get("message", ""))
    return message if status.get("reason") == "Evicted" and _OWN_LIMIT.search(message) else ""


def _failure(status: Body) -> str:
    """Why a pod failed before its trainer started."""
    if status.get("phase") != "Failed":
        return ""
    for container in status.get("initContainerStatuses") or ():
        terminated = (container.get("state") or {}).get("terminated") or {}
        if terminated.get("exitCode"):
            message = f": {terminated['message']}" if terminated.get("message") else ""
            return f"init container {container.get('name')} exited with code {terminated['exitCode']}{message}"
    return f"{status.get('reason', '')}: {status.get('message', '')}".strip(": ")


def _waiting(conditions: Mapping[str, Body], status: Body) -> str:
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return f"{scheduled.get('reason', 'Unschedulable')}: {scheduled.get('message', '')}"
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") and waiting["reason"] not in ("ContainerCreating", "PodInitializing"):
            return f"{waiting['reason']}: {waiting.get('message', '')}".strip(": ")
    return ""
