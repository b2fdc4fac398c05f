"""Acceptance of a job: specs and templates that a cluster cannot run or the policy forbids."""

from __future__ import annotations

from typing import Any

import pytest
from support.plans import after, conditions, failed, job, make_plan, pod, running

from yolojob.api.status import JobPhase


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"dataset": {"uri": "file:///data"}}, "LaptopOnly"),
        ({"workers": {"gpu": {"required": False}}}, "NodesUnknown"),
        ({"workers": {"template": {"spec": {"restartPolicy": "Always"}}}}, "TemplateForbidden"),
    ],
)
def test_spec_that_a_cluster_cannot_run_is_not_accepted(spec: dict[str, Any], reason: str) -> None:
    planned = make_plan(job(**spec))
    assert conditions(planned)["Accepted"] == ("False", reason)
    assert planned.create == ()


def test_running_gang_with_a_now_forbidden_template_may_finish() -> None:
    """The policy became stricter while it was running: no new pods are created, but the running gang may finish."""
    forbidden = {"workers": {"replicas": 2, "template": {"spec": {"hostNetwork": True}}}}
    current = job(running().status, **forbidden)
    planned = make_plan(current, pod(0), pod(1))
    assert conditions(planned)["Accepted"] == ("False", "TemplateForbidden")
    assert planned.status.phase == JobPhase.RUNNING
    done = make_plan(job(planned.status, **forbidden), pod(0, "Succeeded"), pod(1, "Succeeded"))
    assert done.status.phase == JobPhase.SUCCEEDED
    lost = make_plan(job(planned.status, **forbidden), failed(0, 1), pod(1))
    assert make_plan(job(lost.status, **forbidden)).create == ()


FORBIDDEN = {"workers": {"replicas": 2, "template": {"spec": {"hostNetwork": True}}}}


class TestForbiddenTemplateOfRunningJob:
    """The template has become forbidden after the job started."""

    def test_missing_pods_restart_the_job_without_new_pods(self) -> None:
        planned = make_plan(job(running().status, **FORBIDDEN))
        assert (planned.status.phase, planned.status.disruptions) == (JobPhase.RESTARTING, 1)
        assert make_plan(job(planned.status, **FORBIDDEN)).create == ()

    def test_deadline_still_applies(self) -> None:
        spec = {**FORBIDDEN, "runPolicy": {"activeDeadlineSeconds": 60}}
        lost = make_plan(job(running().status, **spec)).status
        assert make_plan(job(lost, **spec), now=after(30)).due == after(60)
        assert conditions(make_plan(job(lost, **spec), now=after(60)))["Failed"] == ("True", "DeadlineExceeded")

    def test_suspend_still_works(self) -> None:
        planned = make_plan(job(running().status, **FORBIDDEN, runPolicy={"suspend": True}))
        assert planned.status.phase == JobPhase.SUSPENDED

    def test_condition_is_not_overwritten_by_the_missing_gpu(self) -> None:
        gpu = {"types": ["T4"], "required": False}
        spec: dict[str, Any] = {"workers": {"replicas": 2, "gpu": gpu}}
        status = make_plan(job(make_plan(job(**spec), nodes={}).status, **spec), pod(0), pod(1), nodes={}).status
        assert next(c.reason for c in status.conditions if c.type == "Accepted") == "NoGpu"
        forbidden: dict[str, Any] = {"workers": {**FORBIDDEN["workers"], "gpu": gpu}}
        for moment in (10, 20):
            planned = make_plan(job(status, **forbidden), pod(0), pod(1), now=after(moment), nodes={})
            assert conditions(planned)["Accepted"] == ("False", "TemplateForbidden")
            status = planned.status
        assert next(c.last_transition_time for c in status.conditions if c.type == "Accepted") == after(10)


@pytest.mark.parametrize(
    "template",
    [
        {"spec": {"containers": ["trainer"]}},
        {"spec": {"containers": [{"name": "trainer", "env": ["A=B"]}]}},
        {"spec": {"volumes": [None]}},
        {"spec": ["x"]},
        {"metadata": {"labels": "x"}},
        {"metadata": {"annotations": ["x"]}},
    ],
)
@pytest.mark.parametrize("gang", ["none", "volcano"])
def test_malformed_template_is_not_accepted(template: dict[str, Any], gang: str) -> None:
    planned = make_plan(job(workers={"replicas": 2, "template": template}, scheduling={"gang": gang}))
    assert conditions(planned)["Accepted"] == ("False", "TemplateInvalid")
    assert planned.create == ()
