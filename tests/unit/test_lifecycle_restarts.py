"""Restarts in the lifecycle of a job: failures, disruptions, backoff, and lost nodes."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any

import pytest
from support.plans import NOW, after, conditions, failed, job, make_plan, pod, running
from yolojob_operator.plan.builder import FORCE_AFTER, FORCE_AFTER_READY
from yolojob_operator.plan.lifecycle import ROOT_CAUSE_TIMEOUT
from yolojob_operator.plan.node_facts import NodeFacts
from yolojob_operator.plan.pod_facts import PodFacts

from yolojob.api.constants import ExitCode
from yolojob.api.status import JobPhase, Progress, YoloTrainingJobStatus
from yolojob.api.trainer_report import Failure, Report, TrainerState

PEER_LOST = failed(0, ExitCode.PEER_LOST)


@pytest.mark.parametrize(
    ("pods", "restarts", "disruptions", "reason"),
    [
        ([failed(1, 1), pod(0)], 1, 0, "TrainingFailed"),
        ([failed(1, 1), PEER_LOST], 1, 0, "TrainingFailed"),
        ([failed(1, 137, exit_reason="OOMKilled", memory_limit="4Gi"), pod(0)], 1, 0, "OOMKilled"),
        ([failed(1, 143), PEER_LOST], 1, 0, "PeerLost"),
        ([failed(1, 143, deleted=NOW), PEER_LOST], 0, 1, "PodDeleted"),
        ([failed(1, 1, disruption="PreemptionByScheduler: made room"), pod(0)], 0, 1, "PreemptionByScheduler"),
        ([pod(1, deleted=NOW + timedelta(seconds=30)), pod(0)], 0, 1, "PodDeleted"),
        ([pod(0)], 0, 1, "PodDeleted"),
        ([PEER_LOST, failed(1, ExitCode.PEER_LOST)], 1, 0, "PeerLost"),
        ([failed(1, 137, deleted=NOW), pod(0)], 0, 1, "PodDeleted"),
    ],
    ids=[
        "failure",
        "cause-not-survivor",
        "oom",
        "sigterm-of-unknown-origin",
        "sigterm-by-deletion",
        "preempted",
        "being-deleted",
        "gone",
        "all-lost-each-other",
        "killed-at-the-end-of-its-grace",
    ],
)
def test_lost_worker_replaces_the_whole_gang(
    pods: list[PodFacts], restarts: int, disruptions: int, reason: str
) -> None:
    planned = make_plan(running(), *pods)
    assert (planned.status.restarts, planned.status.disruptions) == (restarts, disruptions)
    assert planned.status.attempt == 2
    assert planned.status.phase == JobPhase.RESTARTING
    assert conditions(planned)["Running"] == ("False", reason)
    assert {d.name for d in planned.delete} == {p.name for p in pods if not p.deleted}
    assert planned.create == (), "the names are in use until the old pods are gone"
    afterwards = make_plan(job(planned.status), now=NOW + timedelta(seconds=1))
    assert [o["metadata"]["labels"]["yolojob.dev/attempt"] for o in afterwards.create if o["kind"] == "Pod"] == [
        "2",
        "2",
    ]


def test_restart_planned_several_times_is_counted_once() -> None:
    pods = (failed(1, 1), pod(0))
    planned = make_plan(running(), *pods)
    for _ in range(3):
        planned = make_plan(job(planned.status), *pods)
    assert planned.status.restarts == 1
    assert planned.status.attempt == 2


def test_worker_that_lost_a_peer_waits_for_the_failed_worker() -> None:
    planned = make_plan(running(), PEER_LOST, pod(1))
    assert planned.status.attempt == 1
    assert planned.due == NOW + ROOT_CAUSE_TIMEOUT
    late = make_plan(job(planned.status), PEER_LOST, pod(1), now=NOW + ROOT_CAUSE_TIMEOUT)
    assert late.status.attempt == 2
    assert (late.status.restarts, late.status.disruptions) == (0, 1), "a peer that does not exit has lost its node"
    assert {(d.name, d.grace_seconds) for d in late.delete} == {("digits-worker-0", 5), ("digits-worker-1", 5)}


def test_worker_that_hangs_repeatedly_counts_as_failure() -> None:
    status = running().status
    assert status is not None
    for attempt in range(1, 6):
        gang = failed(0, ExitCode.PEER_LOST, attempt=attempt), pod(1, attempt=attempt)
        status = make_plan(job(status), *gang, now=NOW + ROOT_CAUSE_TIMEOUT).status
    assert (status.disruptions, status.restarts) == (3, 2)


def test_bad_input_fails_the_job_immediately_with_the_message_of_the_rank() -> None:
    failure = Failure(rank=0, reason="DatasetNotFound", message="there is no folder", exit_code=2)
    message = Report(state=TrainerState.FAILED, failure=failure).model_dump_json(by_alias=True, exclude_none=True)
    planned = make_plan(running(), failed(0, ExitCode.BAD_INPUT, message=message), failed(1, ExitCode.PEER_LOST))
    assert planned.status.phase == JobPhase.FAILED
    assert planned.status.restarts == 0
    assert conditions(planned)["Failed"] == ("True", "DatasetNotFound")
    assert "there is no folder" in next(c.message for c in planned.status.conditions if c.type == "Failed")


def test_backoff_limit_exceeded_fails_the_job() -> None:
    current = running(runPolicy={"backoffLimit": 1})
    first = make_plan(current, failed(1, 1), pod(0))
    assert first.status.phase == JobPhase.RESTARTING
    status = first.status.model_copy(deep=True)
    planned = make_plan(job(status, runPolicy={"backoffLimit": 1}), failed(0, 1, attempt=2), pod(1, attempt=2))
    assert planned.status.phase == JobPhase.FAILED
    assert conditions(planned)["Failed"] == ("True", "BackoffLimitExceeded")


def test_backoff_grows_after_an_immediate_first_restart() -> None:
    status, waits = running(runPolicy={"backoffLimit": 20}).status, []
    assert status is not None
    for attempt in range(1, 12):
        status = make_plan(
            job(status, runPolicy={"backoffLimit": 20}), failed(1, 1, attempt=attempt), pod(0, attempt=attempt)
        ).status
        waits.append((status.next_attempt_time - NOW).total_seconds() if status.next_attempt_time else 0)
    assert waits[:5] == [0, 10, 20, 40, 80]
    assert waits[-1] == 300
    waiting = make_plan(job(status, runPolicy={"backoffLimit": 20}))
    assert waiting.create == ()
    assert waiting.due == status.next_attempt_time


def test_disruptions_are_retried_immediately_until_they_repeat_too_often() -> None:
    status, waits = running().status, []
    assert status is not None
    for attempt in range(1, 6):
        status.history[-1].start_time = NOW
        gone = pod(1, attempt=attempt, deleted=NOW + timedelta(seconds=30))
        status = make_plan(job(status), gone, pod(0, attempt=attempt)).status
        waits.append((status.next_attempt_time - NOW).total_seconds() if status.next_attempt_time else 0)
    assert waits == [0, 0, 0, 10, 20]
    assert (status.disruptions, status.restarts) == (5, 0)


def test_pod_that_does_not_terminate_is_deleted_by_force() -> None:
    planned = make_plan(running(), pod(0, deleted=NOW), pod(1))
    stuck = pod(0, deleted=NOW)
    waiting = make_plan(job(planned.status), stuck)
    assert waiting.delete == ()
    assert waiting.due == NOW + FORCE_AFTER
    forced = make_plan(job(planned.status), stuck, now=NOW + FORCE_AFTER)
    assert [(d.name, d.grace_seconds) for d in forced.delete] == [("digits-worker-0", 0)]


def test_pod_on_a_ready_node_gets_more_time_before_it_is_deleted_by_force() -> None:
    """Its kubelet is slow but alive, and two workers must not write to the same storage."""
    planned = make_plan(running(), pod(0, deleted=NOW), pod(1))
    stuck = pod(0, deleted=NOW)
    nodes = {"node-0": NodeFacts(name="node-0", ready=True)}
    assert make_plan(job(planned.status), stuck, now=NOW + FORCE_AFTER, nodes=nodes).delete == ()
    assert make_plan(job(planned.status), stuck, now=NOW + FORCE_AFTER_READY, nodes=nodes).delete != ()


def test_worker_that_lost_a_peer_that_is_unschedulable_is_a_disruption() -> None:
    status = make_plan(job()).status
    unplaced = pod(1, "Pending", node="", started=None, scheduled=None, waiting="Unschedulable: 0/3 nodes")
    for attempt in range(1, 6):
        gang = failed(0, ExitCode.PEER_LOST, attempt=attempt), dataclasses.replace(unplaced, attempt=attempt)
        status = make_plan(job(status), *gang, now=after(600 * attempt)).status
    assert (status.restarts, status.disruptions, status.phase) == (0, 5, JobPhase.RESTARTING)
    assert "0/3 nodes" in (status.history[-2].message or "")


def test_failure_message_of_any_length_fits_a_condition() -> None:
    failure = Failure(rank=0, reason="X" * 64, message="y" * 40_000, exit_code=2)
    message = Report(state=TrainerState.FAILED, failure=failure).model_dump_json(by_alias=True, exclude_none=True)
    planned = make_plan(running(), failed(0, ExitCode.BAD_INPUT, message=message), pod(1))
    assert planned.status.phase == JobPhase.FAILED


class TestNotReadyNodes:
    """Kubernetes stops evictions in a zone in which most nodes are not ready. Then the operator replaces the gang."""

    @staticmethod
    def nodes(**facts: Any) -> dict[str, NodeFacts]:
        return {"node-0": NodeFacts(name="node-0", **facts)}

    def test_node_not_ready_for_a_minute_ends_the_attempt(self) -> None:
        not_ready = self.nodes(ready=False, since=NOW)
        waiting = make_plan(running(), pod(0), pod(1), now=after(59), nodes=not_ready)
        assert (waiting.status.attempt, waiting.due) == (1, after(60))
        planned = make_plan(running(), pod(0), pod(1), now=after(60), nodes=not_ready)
        assert (planned.status.attempt, planned.status.disruptions, planned.status.restarts) == (2, 1, 0)
        assert planned.status.history[0].reason == "NodeLost"
        assert "node node-0 of digits-worker-0 is not ready" in (planned.status.history[0].message or "")
        assert {d.name for d in planned.delete} == {"digits-worker-0", "digits-worker-1"}

    def test_deleted_node_ends_the_attempt(self) -> None:
        planned = make_plan(running(), pod(0), pod(1), now=after(60), nodes={})
        assert "does not exist any more" in (planned.status.history[0].message or "")
        assert make_plan(running(), pod(0), pod(1), now=after(50), nodes={}).status.attempt == 1, (
            "the node watch may be late"
        )

    def test_ready_or_unknown_node_does_not_end_the_attempt(self) -> None:
        for nodes in (self.nodes(ready=True, since=NOW), None):
            planned = make_plan(running(), pod(0), pod(1), now=after(3600), nodes=nodes)
            assert (planned.status.attempt, planned.due) == (1, None)


def test_edited_job_with_an_incomplete_gang_starts_a_new_attempt() -> None:
    """Worker 1 does not exist yet when the job is edited. All pods of a gang are created from the same spec."""
    status = make_plan(job()).status
    edited = job(status)
    edited.metadata.generation = 2
    planned = make_plan(edited, pod(0, generation=1))
    assert (planned.status.attempt, planned.status.disruptions, planned.create) == (2, 0, ())
    assert [d.name for d in planned.delete] == ["digits-worker-0"]
    assert planned.status.history[0].reason == "SpecChanged"
    edited.status = planned.status
    replanned = make_plan(edited)
    assert {p["metadata"]["annotations"]["yolojob.dev/generation"] for p in replanned.create if p["kind"] == "Pod"} == {
        "2"
    }
    whole = make_plan(edited, pod(0, attempt=2, generation=1), pod(1, attempt=2, generation=1))
    assert whole.status.attempt == 2, "a complete gang is kept"


def preempted(status: YoloTrainingJobStatus, epoch: int, limit: int) -> YoloTrainingJobStatus:
    """The status after an attempt that is preempted while the training is in this epoch."""
    spec = {"runPolicy": {"disruptionLimit": limit}}
    status = status.model_copy(update={"progress": Progress(epoch=epoch, epochs=100)}, deep=True)
    lost = failed(1, 1, attempt=status.attempt, disruption="PreemptionByScheduler: made room")
    return make_plan(job(status, **spec), pod(0, attempt=status.attempt), lost).status


def test_disruptions_without_progress_end_the_job_at_their_limit() -> None:
    status = make_plan(job()).status
    for _ in range(3):
        status = preempted(status, epoch=0, limit=3)
        assert status.phase == JobPhase.RESTARTING
        status.next_attempt_time = None
    status = preempted(status, epoch=0, limit=3)
    assert status.phase == JobPhase.FAILED
    condition = next(c for c in status.conditions if c.type == "Failed")
    assert condition.reason == "DisruptionLimitExceeded"
    assert "4 disruptions in a row without progress" in condition.message


def test_disruptions_with_progress_never_end_the_job() -> None:
    status = make_plan(job()).status
    for epoch in range(1, 30):
        status = preempted(status, epoch=epoch, limit=1)
        assert status.phase == JobPhase.RESTARTING
        status.next_attempt_time = None
    assert (status.disruptions, status.disruptions_in_a_row) == (29, 1)
    status = preempted(status, epoch=5, limit=1)
    assert status.phase == JobPhase.FAILED, "an attempt that got less far than an earlier one has made no progress"


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ((143, ""), "Interrupted"),
        ((137, 'Usage of EmptyDir volume "a" exceeds the limit "1Gi".'), "LimitExceeded"),
        ((1, "Pod ephemeral local storage usage exceeds the total limit"), "LimitExceeded"),
    ],
)
def test_end_that_is_the_jobs_own_fault_counts_against_the_backoff_limit(facts: tuple[int, str], reason: str) -> None:
    """SIGTERM without a deletion: a liveness probe of its own, or an image that always ends so."""
    status = make_plan(job()).status
    code, message = facts
    ended = [failed(i, code, limit_exceeded=message) for i in range(2)]
    planned = make_plan(job(status), *ended)
    assert (planned.status.restarts, planned.status.disruptions) == (1, 0)
    assert planned.status.history[0].reason == reason


def test_deletion_with_a_grace_period_of_years_is_shortened() -> None:
    spec: dict[str, Any] = {"runPolicy": {"suspend": True}}
    years = 315_360_000
    running = make_plan(job()).status
    first = make_plan(job(running, **spec), pod(0, grace_seconds=years), pod(1, grace_seconds=years))
    assert [d.grace_seconds for d in first.delete] == [600, 600]
    again = make_plan(job(running, **spec), pod(0, deleted=after(years)), pod(1, deleted=after(599)))
    assert [(d.name, d.grace_seconds) for d in again.delete] == [("digits-worker-0", 30)]


@pytest.mark.parametrize("group", ["team-b-production", "digits-2", "other-1", ""])
def test_workload_of_another_name_is_not_released(group: str) -> None:
    spec: dict[str, Any] = {"runPolicy": {"suspend": True}}
    running = make_plan(job()).status
    deleted = [pod(i, deleted=after(0), kueue_group=group) for i in range(2)]
    assert make_plan(job(running, **spec), *deleted).release == ()


def held(attempt: int = 1) -> list[PodFacts]:
    """Pods of an attempt whose grace period has passed, and that a finalizer keeps."""
    return [pod(i, attempt=attempt, deleted=after(-60), finalizers=("example.com/guard",)) for i in range(2)]


def test_pod_held_by_a_finalizer_is_named_in_the_condition() -> None:
    restarted = make_plan(running(), failed(1, 1), pod(0)).status
    planned = make_plan(job(restarted), *held())
    assert planned.create == ()
    scheduled = next(c for c in planned.status.conditions if c.type == "Scheduled")
    assert scheduled.reason == "PodTerminating"
    assert (
        "digits-worker-0 of attempt 1 is terminating, and held by the finalizer example.com/guard" in scheduled.message
    )


def test_wait_for_a_held_pod_is_bounded_by_the_pre_running_deadline() -> None:
    spec: dict[str, Any] = {"runPolicy": {"preRunningDeadlineSeconds": 20}}
    restarted = make_plan(running(**spec), failed(1, 1), pod(0)).status
    early = make_plan(job(restarted, **spec), *held(), now=after(19))
    assert early.status.phase == JobPhase.RESTARTING
    assert early.due is not None
    late = make_plan(job(restarted, **spec), *held(), now=after(21))
    assert late.status.phase == JobPhase.FAILED
    condition = next(c for c in late.status.conditions if c.type == "Failed")
    assert condition.reason == "PodTerminating"
    assert "example.com/guard" in condition.message


@pytest.mark.parametrize(("seconds_back", "waits"), [(0, True), (200, True), (3600, False)])
def test_clock_that_goes_back_does_not_prolong_the_back_off(seconds_back: int, waits: bool) -> None:
    status = running().status
    for attempt in (1, 2):
        assert status is not None
        status = make_plan(job(status), failed(1, 1, attempt=attempt), pod(0, attempt=attempt)).status
    assert status is not None
    assert status.next_attempt_time is not None
    planned = make_plan(job(status), now=after(-seconds_back))
    assert (planned.create == ()) == waits
