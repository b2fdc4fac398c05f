"""The plan over whole histories of jobs: accounts, counters and gangs after a sequence of observed pods."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from support.plans import NOW, Timeline, after, conditions, pod, reasons
from yolojob_operator.plan.builder import Obstacle
from yolojob_operator.plan.node_facts import NodeFacts
from yolojob_operator.plan.pod_facts import PodFacts

from yolojob.api.status import JobPhase, Progress, Timing, YoloTrainingJobStatus
from yolojob.api.trainer_report import Report

QUOTA = Obstacle(reason="QuotaExceeded", message="exceeded quota: pods")
NOWHERE: dict[str, Any] = {"node": "", "scheduled": None, "started": None, "ready": False}
ELASTIC: dict[str, Any] = {"elastic": {"minReplicas": 1, "maxReplicas": 8}, "train": {"batch": 16}}


def early(index: int, phase: str = "Running", begin: float = 0, **facts: Any) -> PodFacts:
    """A pod that was created, scheduled and started at this second."""
    moment = after(begin)
    return pod(index, phase, **{"created": moment, "scheduled": moment, "started": moment, **facts})


def report(trained: float, carried: float = 0.0) -> Report:
    timing = Timing(validation_seconds=0, checkpoint_seconds=0, training_seconds={"forward": trained})
    return Report(progress=Progress(epoch=1, epochs=9), timing=timing, carried_seconds=carried)


def assert_balanced(status: YoloTrainingJobStatus) -> None:
    """The parts of the timing add up to the time since the job's creation."""
    timing = status.timing
    assert timing is not None
    assert timing.updated_at is not None
    wall = (timing.updated_at - (NOW - timedelta(seconds=10))).total_seconds()
    assert sum(timing.parts.values()) == pytest.approx(wall, abs=1)


def test_training_during_the_grace_period_is_not_counted_twice() -> None:
    """A worker trains and saves after its attempt has ended: the checkpoint contains this time, and so does the
    restart.
    """
    timeline = Timeline()
    timeline.at(0)
    timeline.at(1, early(0), early(1))
    deleting: dict[str, Any] = {"deleted": after(90)}
    timeline.at(60, early(0), early(1, disruption="EvictionByEvictionAPI: m", **deleting), report=report(60))
    timeline.at(62, early(0, **deleting), early(1, **deleting))
    timeline.at(68)
    second = [early(n, begin=70, attempt=2) for n in range(2)]
    timeline.at(71, *second)
    timeline.at(140, *second, report=report(67 + 70, carried=67))
    assert_balanced(timeline.status)


def test_job_that_continues_from_another_jobs_checkpoint_counts_only_its_own_time() -> None:
    timeline = Timeline()
    timeline.at(0)
    timeline.at(1, early(0), early(1))
    timeline.at(100, early(0), early(1), report=report(3600 + 95, carried=3600))
    assert_balanced(timeline.status)
    assert timeline.timing.training_seconds["forward"] == pytest.approx(95)


def test_worker_that_lost_a_peer_blocked_by_a_quota_is_a_disruption() -> None:
    timeline = Timeline(runPolicy={"backoffLimit": 0})
    timeline.at(0)
    timeline.at(5, pod(0), obstacle=QUOTA)
    planned = timeline.at(300, pod(0, "Failed", exit_code=76, finished=after(300)), obstacle=QUOTA)
    assert (planned.status.restarts, planned.status.disruptions) == (0, 1)
    assert planned.status.history[0].reason == "QuotaExceeded"


def test_worker_that_lost_a_peer_blocked_by_a_quota_gives_the_quota_as_reason_with_other_workers_alive() -> None:
    timeline = Timeline(workers={"replicas": 4}, train={"batch": 16})
    timeline.at(0)
    timeline.at(5, *(pod(n) for n in range(3)), obstacle=QUOTA)
    ended = pod(0, "Failed", exit_code=76, finished=after(300))
    planned = timeline.at(310, ended, pod(1), pod(2), obstacle=QUOTA)
    assert planned.status.history[0].reason == "QuotaExceeded"


def test_cost_of_workers_that_save_after_their_attempt_lasts_until_they_end() -> None:
    timeline = Timeline(pricing={"perWorkerHour": 3600.0})
    timeline.at(0)
    timeline.at(1, early(0), early(1))
    deleting: dict[str, Any] = {"deleted": after(80)}
    timeline.at(50, early(0, disruption="EvictionByEvictionAPI: m", **deleting), early(1))
    planned = timeline.at(55, early(0, **deleting), early(1, **deleting))
    assert planned.due
    assert planned.due <= after(61), "a pod that disappears is paid until it was last seen, so it is looked at often"
    ended = [early(n, "Failed", finished=after(75), exit_code=143, **deleting) for n in range(2)]
    timeline.at(75, *ended)
    timeline.at(76)
    assert timeline.cost.so_far == pytest.approx(150)


def test_cost_of_suspended_workers_that_disappear_lasts_until_they_were_last_seen() -> None:
    timeline = Timeline(pricing={"perWorkerHour": 3600.0})
    timeline.at(0)
    timeline.at(1, early(0), early(1))
    timeline.spec = {**timeline.spec, "runPolicy": {"suspend": True}}
    timeline.at(50, early(0), early(1))
    seconds = 51.0
    while seconds < 80:
        planned = timeline.at(seconds, *(early(n, deleted=after(80)) for n in range(2)))
        assert planned.due
        seconds = max((planned.due - NOW).total_seconds(), seconds + 1)
    timeline.at(80)
    assert timeline.cost.so_far == pytest.approx(150, abs=10)


def test_succeeded_worker_that_is_deleted_is_not_replaced() -> None:
    """Its node is removed by an autoscaler while worker 0 still uploads."""
    timeline = Timeline()
    timeline.at(0)
    timeline.at(1, early(0), early(1))
    timeline.at(100, early(0), early(1, "Succeeded", finished=after(100)))
    planned = timeline.at(160, early(0))
    assert (planned.status.phase, planned.status.attempt, planned.status.disruptions) == (JobPhase.RUNNING, 1, 0)
    assert not planned.create
    assert planned.status.workers.succeeded == 1
    timeline.at(200, early(0), report=report(190))
    assert timeline.status.progress, "reports of the other workers still count"
    planned = timeline.at(300, early(0, "Succeeded", finished=after(300)))
    assert planned.status.phase == JobPhase.SUCCEEDED
    assert planned.status.workers.succeeded == 2


def test_missing_worker_beside_a_succeeded_one_replaces_the_gang() -> None:
    timeline = Timeline(workers={"replicas": 4}, train={"batch": 16})
    timeline.at(0)
    timeline.at(1, *(early(n) for n in range(4)))
    timeline.at(100, *(early(n) for n in range(3)), early(3, "Succeeded", finished=after(100)))
    planned = timeline.at(160, early(0), early(1))
    assert planned.status.attempt == 2
    assert planned.status.workers.succeeded == 0, "counts of the previous attempt are reset"


def test_missing_worker_after_worker_0_succeeded_is_not_created() -> None:
    timeline = Timeline(workers={"replicas": 4}, train={"batch": 16})
    timeline.at(0)
    timeline.at(1, *(early(n) for n in range(4)))
    planned = timeline.at(10, early(0, "Succeeded", finished=after(10)), early(2), early(3))
    assert not planned.create
    assert conditions(planned)["Scheduled"] == ("True", "Scheduled")


def test_invalid_template_of_a_running_job_is_reported_and_pods_are_kept() -> None:
    timeline = Timeline(workers={"replicas": 1}, **ELASTIC)
    timeline.at(0)
    timeline.at(1, pod(0))
    timeline.spec["workers"] = {"replicas": 2, "template": {"spec": {"containers": ["trainer"]}}}
    planned = timeline.at(40, pod(0))
    assert conditions(planned)["Accepted"] == ("False", "TemplateInvalid")
    assert not planned.delete, "the running gang may finish"


@pytest.mark.parametrize("replicas", [1, 2])
def test_next_attempt_of_a_job_scaled_down_between_attempts_has_the_new_size(replicas: int) -> None:
    timeline = Timeline(workers={"replicas": 4}, **ELASTIC)
    timeline.at(0)
    gang = [pod(n) for n in range(4)]
    timeline.at(1, *gang)
    timeline.at(10, *gang[:3], pod(3, deleted=after(40), disruption="EvictionByEvictionAPI: m"))
    timeline.spec["workers"] = {"replicas": replicas}
    timeline.at(12, *(pod(n, deleted=after(40)) for n in range(4)))
    planned = timeline.at(20)
    assert sum(item["kind"] == "Pod" for item in planned.create) == replicas
    repeated = timeline.at(20.1, *(pod(n, "Pending", attempt=2, **NOWHERE) for n in range(replicas)))
    assert not repeated.delete
    assert not reasons(repeated)
    assert repeated.status.attempt == 2


def test_gpus_requested_while_training_on_cpus_apply_to_the_next_attempt() -> None:
    nodes = {"node-0": NodeFacts(name="node-0", ready=True, devices={"nvidia.com/gpu": 8})}
    timeline = Timeline()
    timeline.at(0, nodes=nodes)
    timeline.at(1, pod(0), pod(1), nodes=nodes)
    timeline.spec["workers"] = {"replicas": 2, "gpu": {"count": 1, "required": True}}
    assert conditions(timeline.at(10, pod(0), pod(1), nodes=nodes))["Accepted"] == ("True", "Accepted")
    timeline.spec["workers"] = {"replicas": 2, "gpu": {"count": 1, "required": False}}
    planned = timeline.at(11, pod(0), pod(1), nodes=nodes)
    message = next(c.message for c in planned.status.conditions if c.type == "Accepted")
    assert "no node has" not in message
    assert "the next attempt" in message


@pytest.mark.parametrize("policy", ["activeDeadlineSeconds", "preRunningDeadlineSeconds"])
def test_deadline_deletes_running_pods_despite_clean_pod_policy_none(policy: str) -> None:
    timeline = Timeline(runPolicy={"cleanPodPolicy": "None", policy: 60})
    timeline.at(0)
    active = policy == "activeDeadlineSeconds"
    second = pod(1) if active else pod(1, "Pending", waiting="Unschedulable: 0/3", **NOWHERE)
    timeline.at(1, pod(0), second)
    planned = timeline.at(61, pod(0), second)
    assert planned.status.phase == JobPhase.FAILED
    assert {d.name for d in planned.delete} == {"digits-worker-0", "digits-worker-1"}
    ended = [pod(0, "Failed", exit_code=143), pod(1, "Failed", exit_code=143)]
    assert not timeline.at(62, *ended).delete, "ended pods stay, for their logs"


def test_completed_indexes_of_workers_deleted_one_after_the_other_are_kept() -> None:
    timeline = Timeline(workers={"replicas": 4}, train={"batch": 16})
    timeline.at(0)
    timeline.at(1, *(early(n) for n in range(4)))
    timeline.at(100, *(early(n) for n in range(3)), early(3, "Succeeded", finished=after(100)))
    timeline.at(110, *(early(n) for n in range(3)))
    timeline.at(120, early(0), early(1), early(2, "Succeeded", finished=after(120)))
    planned = timeline.at(130, early(0), early(1))
    assert planned.status.attempt == 1
    assert planned.status.workers.completed_indexes == "2,3"


def test_job_whose_succeeded_worker_0_was_deleted_succeeds() -> None:
    """The operator did not run when worker 0 was deleted."""
    timeline = Timeline()
    timeline.at(0)
    timeline.at(1, early(0), early(1))
    timeline.at(100, early(0, "Succeeded", finished=after(100)), early(1))
    planned = timeline.at(103, early(1))
    assert planned.status.phase == JobPhase.SUCCEEDED
    assert planned.status.attempt == 1
