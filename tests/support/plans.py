"""A job, its pods and a moment in few words, for tests of the plan."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from yolojob_operator.objects.pods import Defaults
from yolojob_operator.plan.builder import Observed
from yolojob_operator.plan.lifecycle import Plan, plan
from yolojob_operator.plan.pod_facts import PodFacts

from support import minimal
from yolojob.api.job import YoloTrainingJob
from yolojob.api.status import YoloTrainingJobStatus

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
DEFAULTS = Defaults(image="trainer:test")


def job(status: YoloTrainingJobStatus | None = None, **spec: Any) -> YoloTrainingJob:
    document = minimal(**{"workers": {"replicas": 2}, "storage": {"uri": "pvc://runs"}, **spec})
    document["metadata"] |= {
        "namespace": "default",
        "uid": "job-uid",
        "generation": 1,
        "creationTimestamp": "2026-01-01T11:59:50Z",
    }
    made = YoloTrainingJob.model_validate(document)
    made.status = status
    return made


def pod(index: int, phase: str = "Running", attempt: int = 1, **facts: Any) -> PodFacts:
    base: dict[str, Any] = {
        "name": f"digits-worker-{index}",
        "uid": f"uid-{attempt}-{index}",
        "owner_uid": "job-uid",
        "index": index,
        "attempt": attempt,
        "phase": phase,
        "node": "node-0",
        "ready": phase == "Running",
        "created": NOW - timedelta(seconds=8),
        "scheduled": NOW - timedelta(seconds=6),
        "started": NOW - timedelta(seconds=2),
    }
    if phase in ("Succeeded", "Failed"):
        base |= {"finished": NOW, "exit_code": 0 if phase == "Succeeded" else 1}
    return PodFacts(**{**base, **facts})


def failed(index: int, code: int, **facts: Any) -> PodFacts:
    return pod(index, "Failed", exit_code=code, **facts)


def running(**spec: Any) -> YoloTrainingJob:
    """A job whose first attempt runs."""
    started = make(job(**spec)).status
    return job(make(job(started, **spec), pod(0), pod(1)).status, **spec)


def make(of: YoloTrainingJob, *pods: PodFacts, now: datetime = NOW, **observed: Any) -> Plan:
    return plan(of, Observed(pods=pods, **observed), now, DEFAULTS)


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def conditions(made: Plan) -> dict[str, tuple[str, str]]:
    return {c.type.value: (c.status, c.reason) for c in made.status.conditions}


def reasons(made: Plan) -> list[str]:
    return [e.reason for e in made.events]
