"""Builders for tests of the plan: a job, its pods, and the plan for them at a given time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from yolojob_operator.objects.defaults import Defaults
from yolojob_operator.plan.builder import Observed
from yolojob_operator.plan.lifecycle import Plan, plan
from yolojob_operator.plan.pod_facts import PodFacts

from support import minimal
from yolojob.api.job import YoloTrainingJob
from yolojob.api.status import Cost, Timing, YoloTrainingJobStatus

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
    parsed = YoloTrainingJob.model_validate(document)
    parsed.status = status
    return parsed


def pod(index: int, phase: str = "Running", attempt: int = 1, **facts: Any) -> PodFacts:
    base: dict[str, Any] = {
        "name": f"digits-worker-{index}",
        "uid": f"uid-{attempt}-{index}",
        "owner_uid": "job-uid",
        "index": index,
        "attempt": attempt,
        "phase": phase,
        "node": "node-0",
        "image": DEFAULTS.image,
        "ready": phase == "Running",
        "created": NOW - timedelta(seconds=8),
        "scheduled": NOW - timedelta(seconds=6),
        "started": NOW - timedelta(seconds=2),
    }
    if phase in ("Succeeded", "Failed"):
        base |= {"finished": NOW, "exit_code": 0 if phase == "Succeeded" else 1}
    return PodFacts(**{**base, **facts})


def failed(index: int, code: int, **facts: Any) -> PodFacts:
    """A pod whose trainer exited with this code."""
    return pod(index, "Failed", exit_code=code, **facts)


def running(**spec: Any) -> YoloTrainingJob:
    """A job whose first attempt is running."""
    started = make_plan(job(**spec)).status
    return job(make_plan(job(started, **spec), pod(0), pod(1)).status, **spec)


def make_plan(current: YoloTrainingJob, *pods: PodFacts, now: datetime = NOW, **observed: Any) -> Plan:
    """The plan for a job with these pods."""
    return plan(current, Observed(pods=pods, **observed), now, DEFAULTS)


def created(planned: Plan, kind: str = "Pod") -> list[dict[str, Any]]:
    """Returns the objects of a kind that a plan creates, in their order."""
    return [item for item in planned.create if item["kind"] == kind]


def after(seconds: float) -> datetime:
    """The time this many seconds after NOW."""
    return NOW + timedelta(seconds=seconds)


def conditions(planned: Plan) -> dict[str, tuple[str, str]]:
    """Status and reason of each condition, by type."""
    return {c.type.value: (c.status, c.reason) for c in planned.status.conditions}


def reasons(planned: Plan) -> list[str]:
    """The reasons of the plan's events."""
    return [e.reason for e in planned.events]


class Timeline:
    """A job whose status is kept from plan to plan, as the API server keeps it."""

    def __init__(self, **spec: Any) -> None:
        self.spec = spec
        self.latest: YoloTrainingJobStatus | None = None

    def at(self, seconds: float, *pods: PodFacts, **observed: Any) -> Plan:
        """Plan with these pods at this time, and store the status."""
        planned = make_plan(job(self.latest, **self.spec), *pods, now=after(seconds), **observed)
        stored = planned.status.model_dump_json(by_alias=True, exclude_none=True)
        self.latest = YoloTrainingJobStatus.model_validate_json(stored)
        return planned

    @property
    def status(self) -> YoloTrainingJobStatus:
        assert self.latest is not None
        return self.latest

    @property
    def timing(self) -> Timing:
        assert self.status.timing is not None
        return self.status.timing

    @property
    def cost(self) -> Cost:
        assert self.status.cost is not None
        return self.status.cost
