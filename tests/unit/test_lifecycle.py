"""The lifecycle of a job, rule by rule: the plan for a job, its pods and a time."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.plans import NOW, after, conditions, failed, job, make_plan, pod, reasons, running
from yolojob_operator.plan.builder import FORCE_AFTER, FORCE_AFTER_READY, Obstacle
from yolojob_operator.plan.lifecycle import PEER_EXIT_TIMEOUT, ROOT_CAUSE_TIMEOUT
from yolojob_operator.plan.node_facts import NodeFacts
from yolojob_operator.plan.pod_facts import PodFacts

from yolojob.api.constants import ExitCode
from yolojob.api.status import JobPhase, Progress, Result, Timing, YoloTrainingJobStatus
from yolojob.api.trainer_report import Failure, Report, TrainerState


def test_plan_of_a_new_job_creates_a_service_and_all_pods() -> None:
    planned = make_plan(job())
    assert [(o["kind"], o["metadata"]["name"]) for o in planned.create] == [
        ("Service", "digits"),
        ("Pod", "digits-worker-0"),
        ("Pod", "digits-worker-1"),
    ]
    assert planned.status.attempt == 1
    assert planned.status.phase == JobPhase.PENDING
    assert conditions(planned)["Accepted"] == ("True", "Accepted")


def test_plan_creates_only_the_missing_pods() -> None:
    first = make_plan(job())
    planned = make_plan(job(first.status), pod(0, "Pending", node=""), pod(1, "Pending", node=""))
    assert planned.create == ()
    assert planned.status.phase == JobPhase.QUEUED
    only_one_exists = make_plan(job(first.status), pod(1, "Pending"))
    assert [o["metadata"]["name"] for o in only_one_exists.create] == ["digits-worker-0"]


def test_job_runs_when_all_its_pods_run() -> None:
    first = make_plan(job())
    half = make_plan(job(first.status), pod(0), pod(1, "Pending"))
    assert half.status.phase == JobPhase.STARTING
    both = make_plan(job(half.status), pod(0), pod(1))
    assert both.status.phase == JobPhase.RUNNING
    assert both.status.workers.ready == 2
    assert reasons(both) == [], "conditions and pods report this already"
    repeated = make_plan(job(both.status), pod(0), pod(1))
    assert repeated.events == ()
    assert repeated.status == both.status


def test_condition_of_a_waiting_job_gives_the_reason() -> None:
    first = make_plan(job())
    message = "Unschedulable: 0/3 nodes are available: 3 Insufficient cpu."
    planned = make_plan(job(first.status), pod(0, "Pending", node="", waiting=message), pod(1, "Pending"))
    assert conditions(planned)["Scheduled"] == ("False", "Unschedulable")
    assert "Insufficient cpu" in next(c.message for c in planned.status.conditions if c.type == "Scheduled")
    pulling = make_plan(
        job(first.status), pod(0, "Pending", waiting="ImagePullBackOff: no such image"), pod(1, "Pending")
    )
    assert "no such image" in next(c.message for c in pulling.status.conditions if c.type == "Running")


def test_staging_progress_keeps_the_progress_of_earlier_attempts() -> None:
    """While data is downloaded there are no epochs. The epochs that an earlier attempt has reached stay."""
    report = Report(state=TrainerState.STAGING, progress=Progress(staged_bytes=5, dataset_bytes=10))
    first = make_plan(running(), pod(0), pod(1), report=report).status
    assert first.progress is not None
    assert (first.progress.staged_bytes, first.progress.dataset_bytes, first.progress.epochs) == (5, 10, 0)
    first.progress = Progress(epoch=7, epochs=9, map50=0.5)
    second = make_plan(job(first), pod(0), pod(1), report=report).status
    assert second.progress is not None
    assert (second.progress.epoch, second.progress.epochs, second.progress.map50) == (7, 9, 0.5)
    assert second.progress.staged_bytes == 5


def test_progress_and_timing_come_from_the_report_of_rank_0() -> None:
    report = Report(progress=Progress(epoch=2, epochs=3, images_per_second=312.4), timing=Timing(staging_seconds=1.5))
    planned = make_plan(running(), pod(0), pod(1), report=report)
    assert planned.status.progress is not None
    assert planned.status.progress.epoch == 2
    assert planned.status.timing is not None
    assert planned.status.timing.staging_seconds == 1.5


def test_result_of_a_succeeded_job_comes_from_the_termination_message() -> None:
    report = Report(
        state=TrainerState.SUCCEEDED,
        progress=Progress(epoch=3, epochs=3, map50=0.93),
        result=Result(weights="pvc://runs/weights/best.pt", map50=0.93, map=0.61),
    )
    final_report = report.model_dump_json(by_alias=True, exclude_none=True)
    waiting = make_plan(running(), pod(0, "Succeeded", message=final_report), pod(1))
    assert waiting.status.phase == JobPhase.RUNNING, "the other workers have time to exit"
    assert waiting.due == NOW + PEER_EXIT_TIMEOUT
    planned = make_plan(
        job(waiting.status), pod(0, "Succeeded", message=final_report), pod(1), now=NOW + PEER_EXIT_TIMEOUT
    )
    assert planned.status.phase == JobPhase.SUCCEEDED
    assert planned.status.result == report.result
    assert planned.status.completion_time == NOW + PEER_EXIT_TIMEOUT
    assert [d.name for d in planned.delete] == ["digits-worker-1"], "cleanPodPolicy: Running"
    assert conditions(planned)["Running"][0] == "False"
    assert make_plan(job(planned.status), pod(0, "Succeeded"), pod(1, "Succeeded")).events == ()


@pytest.mark.parametrize(
    ("policy", "deleted"),
    [("None", []), ("Running", ["digits-worker-1"]), ("All", ["digits-worker-0", "digits-worker-1"])],
)
def test_clean_pod_policy_of_a_succeeded_job_selects_the_pods_to_delete(policy: str, deleted: list[str]) -> None:
    pods = (pod(0, "Succeeded"), pod(1))
    planned = make_plan(running(runPolicy={"cleanPodPolicy": policy}), *pods, now=NOW + PEER_EXIT_TIMEOUT)
    assert [d.name for d in planned.delete] == deleted


PEER_LOST = failed(0, ExitCode.PEER_LOST)


@pytest.mark.parametrize(
    ("pods", "restarts", "disruptions", "reason"),
    [
        ([failed(1, 1), pod(0)], 1, 0, "TrainingFailed"),
        ([failed(1, 1), PEER_LOST], 1, 0, "TrainingFailed"),
        ([failed(1, 137, exit_reason="OOMKilled", memory_limit="4Gi"), pod(0)], 1, 0, "OOMKilled"),
        ([failed(1, 143), PEER_LOST], 0, 1, "TrainingFailed"),
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
        "sigterm",
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
    assert waits == [0, 0, 0, 10, 10]
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


def test_suspended_job_deletes_its_pods_and_resumes_with_a_new_attempt() -> None:
    suspended = make_plan(job(running().status, runPolicy={"suspend": True}), pod(0), pod(1))
    assert suspended.status.phase == JobPhase.SUSPENDED
    assert len(suspended.delete) == 2
    assert reasons(suspended) == ["Suspended"]
    repeated = make_plan(job(suspended.status, runPolicy={"suspend": True}))
    assert repeated.create == ()
    assert repeated.events == ()
    resumed = make_plan(job(suspended.status), pod(0, deleted=NOW + timedelta(seconds=9)))
    assert resumed.status.attempt == 2
    assert resumed.create == (), "the old pod still uses the name"
    assert [o["kind"] for o in make_plan(job(resumed.status)).create] == ["Service", "Pod", "Pod"]
    assert (resumed.status.restarts, resumed.status.disruptions) == (0, 0)


def test_job_suspended_from_the_start_keeps_its_first_attempt() -> None:
    planned = make_plan(job(runPolicy={"suspend": True}))
    assert planned.create == ()
    assert planned.status.phase == JobPhase.SUSPENDED
    assert make_plan(job(planned.status)).status.attempt == 1


def test_active_deadline_exceeded_fails_the_job_and_deletes_its_pods() -> None:
    policy = {"activeDeadlineSeconds": 60}
    planned = make_plan(running(runPolicy=policy), pod(0), pod(1))
    assert planned.due == NOW + timedelta(seconds=60)
    late = make_plan(job(planned.status, runPolicy=policy), pod(0), pod(1), now=NOW + timedelta(seconds=60))
    assert conditions(late)["Failed"] == ("True", "DeadlineExceeded")
    assert len(late.delete) == 2


def test_pre_running_deadline_exceeded_gives_the_cause_as_reason() -> None:
    policy = {"preRunningDeadlineSeconds": 30}
    first = make_plan(job(runPolicy=policy))
    assert first.due == NOW + timedelta(seconds=30)
    waiting = pod(0, "Pending", waiting="ImagePullBackOff: no such image")
    late = make_plan(job(first.status, runPolicy=policy), waiting, pod(1), now=NOW + timedelta(seconds=30))
    assert conditions(late)["Failed"] == ("True", "ImagePullBackOff")
    assert "no such image" in next(c.message for c in late.status.conditions if c.type == "Failed")


def test_pre_running_deadline_after_an_operator_restart_gives_the_cause_as_reason() -> None:
    """The condition stores the obstacle."""
    policy = {"preRunningDeadlineSeconds": 60}
    obstacle = Obstacle(reason="QuotaExceeded", message="exceeded quota: team")
    planned = make_plan(job(make_plan(job(runPolicy=policy)).status, runPolicy=policy), obstacle=obstacle)
    planned = make_plan(job(planned.status, runPolicy=policy), now=NOW + timedelta(seconds=60))
    assert conditions(planned)["Failed"] == ("True", "QuotaExceeded")


def test_ttl_after_finished_deletes_the_job() -> None:
    policy = {"ttlSecondsAfterFinished": 5}
    done = make_plan(running(runPolicy=policy), pod(0, "Succeeded"), pod(1, "Succeeded"))
    kept = make_plan(job(done.status, runPolicy=policy), pod(0, "Succeeded"))
    assert not kept.delete_job
    assert kept.due == NOW + timedelta(seconds=5)
    assert make_plan(job(done.status, runPolicy=policy), now=NOW + timedelta(seconds=5)).delete_job


def test_job_managed_by_another_controller_is_not_touched() -> None:
    planned = make_plan(job(runPolicy={"managedBy": "kueue.x-k8s.io/multikueue"}))
    assert planned.create == ()
    assert planned.status == YoloTrainingJobStatus()


def test_name_conflict_is_reported_and_the_foreign_pod_is_kept() -> None:
    conflict = Obstacle(reason="NameConflict", message="a pod digits-worker-0 exists that is not this job's")
    planned = make_plan(job(make_plan(job()).status), obstacle=conflict)
    assert planned.delete == ()
    assert conditions(planned)["Scheduled"] == ("False", "NameConflict")
    assert planned.due is not None, "it retries"
    half = make_plan(job(planned.status), pod(0, "Pending", node=""), obstacle=conflict)
    assert conditions(half)["Scheduled"] == ("False", "NameConflict"), "the condition stays while pods exist"


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


codes = st.sampled_from([0, 1, 2, 76, 137, 143])
phases = st.sampled_from(["Pending", "Running", "Succeeded", "Failed"])


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 1), phases, codes, st.booleans(), st.integers(0, 1)), max_size=3), max_size=8
    )
)
def test_invariants_hold_for_any_history_of_pods(history: list[list[tuple[int, str, int, bool, int]]]) -> None:
    """Counters never decrease, the limit holds, no pod is created twice, and a finished job stays finished."""
    status: YoloTrainingJobStatus | None = None
    now = NOW
    for scene in history:
        attempt = status.attempt if status else 1
        pods = {
            (index, attempt - old): pod(
                index,
                phase,
                attempt=attempt - old,
                exit_code=code if phase == "Failed" else None,
                deleted=now if deleted else None,
            )
            for index, phase, code, deleted, old in scene
        }
        planned = make_plan(job(status), *pods.values(), now=now)
        before = status or YoloTrainingJobStatus()
        if before.completion_time:
            assert planned.status.phase == before.phase
            assert planned.create == ()
        assert planned.status.attempt >= before.attempt
        assert before.restarts <= planned.status.restarts <= 3
        assert planned.status.disruptions >= before.disruptions
        present = {p.name for p in pods.values()}
        assert not present & {o["metadata"]["name"] for o in planned.create if o["kind"] == "Pod"}
        assert len({d.uid for d in planned.delete}) == len(planned.delete)
        # The status is the same when it is read back.
        text = planned.status.model_dump_json(by_alias=True, exclude_none=True)
        status = YoloTrainingJobStatus.model_validate(json.loads(text))
        now += timedelta(seconds=7)


def test_first_gang_without_a_stored_status_is_recognised_by_its_pods() -> None:
    policy = {"preRunningDeadlineSeconds": 4}
    waiting: dict[str, Any] = {"node": "", "scheduled": None, "started": None, "created": NOW - timedelta(seconds=3)}
    planned = make_plan(job(runPolicy=policy), pod(0, "Pending", **waiting), pod(1, "Pending", **waiting))
    assert planned.create == ()
    assert planned.status.attempt == 1
    assert planned.status.history[-1].start_time == NOW - timedelta(seconds=3)
    assert planned.due == NOW + timedelta(seconds=1)
    assert planned.status.start_time == NOW - timedelta(seconds=3), "activeDeadlineSeconds counts from the first pods"
    assert planned.status.timing is not None
    assert (planned.status.timing.queued_seconds, planned.status.timing.scheduling_seconds) == (7, 3)


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


class TestTrainingDone:
    """Worker 0 has succeeded, and the other workers have a short time left to exit."""

    DONE = pod(0, "Succeeded"), pod(1)

    @pytest.mark.parametrize("policy", [{"activeDeadlineSeconds": 2}, {"suspend": True}])
    def test_deadline_and_suspension_do_not_prevent_success(self, policy: dict[str, Any]) -> None:
        waiting = make_plan(job(running().status, runPolicy=policy), *self.DONE, now=after(3))
        assert waiting.due == NOW + PEER_EXIT_TIMEOUT
        assert (waiting.status.attempt, waiting.delete) == (1, ())
        planned = make_plan(job(waiting.status, runPolicy=policy), *self.DONE, now=NOW + PEER_EXIT_TIMEOUT)
        assert planned.status.phase == JobPhase.SUCCEEDED

    def test_ttl_counts_from_the_completion(self) -> None:
        ttl = {"ttlSecondsAfterFinished": 7}
        planned = make_plan(job(running().status, runPolicy=ttl), pod(0, "Succeeded"), pod(1, "Succeeded"))
        assert planned.due == after(7)
        without_delay = make_plan(
            job(running().status, runPolicy={"ttlSecondsAfterFinished": 0}), *self.DONE, now=after(9)
        )
        assert without_delay.delete_job

    @pytest.mark.parametrize("finished", [after(3600), None])
    def test_finish_time_from_a_wrong_node_clock_does_not_delay_success(self, finished: datetime | None) -> None:
        assert make_plan(running(), pod(0, "Succeeded", finished=finished), pod(1)).status.phase == JobPhase.SUCCEEDED


def test_replicas_changed_during_an_unseen_suspension_apply_to_the_attempt() -> None:
    status = running().status
    wider = {"workers": {"replicas": 4}}
    planned = make_plan(job(status, **wider), pod(0), pod(1))
    assert planned.status.history[-1].workers == 4
    assert (planned.status.restarts, planned.status.disruptions) == (0, 0)
    lost = make_plan(job(status, **wider), failed(0, 1), pod(1))
    assert lost.status.history[-1].workers == 4


def test_first_gang_scaled_before_its_status_was_written_is_replaced() -> None:
    """Workers that already run wait for the number of workers with which they were created."""
    bounds = {"elastic": {"minReplicas": 1, "maxReplicas": 4}, "train": {"batch": 16}}
    existing = [pod(i, workers=4) for i in range(4)]
    planned = make_plan(job(None, workers={"replicas": 2}, **bounds), *existing)
    assert [r.workers for r in planned.status.history] == [4, 2]
    assert {d.name for d in planned.delete} == {p.name for p in existing}


def test_worker_that_lost_a_peer_that_is_unschedulable_is_a_disruption() -> None:
    status = make_plan(job()).status
    unplaced = pod(1, "Pending", node="", started=None, scheduled=None, waiting="Unschedulable: 0/3 nodes")
    for attempt in range(1, 6):
        gang = failed(0, ExitCode.PEER_LOST, attempt=attempt), dataclasses.replace(unplaced, attempt=attempt)
        status = make_plan(job(status), *gang, now=after(600 * attempt)).status
    assert (status.restarts, status.disruptions, status.phase) == (0, 5, JobPhase.RESTARTING)
    assert "0/3 nodes" in (status.history[-2].message or "")


def test_failure_message_of_any_length_fits_a_condition() -> None:
    failure = Failure(rank=0, reason="X" * 2000, message="y" * 40_000, exit_code=2)
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


def test_active_deadline_of_a_gated_job_starts_after_admission() -> None:
    spec: dict[str, Any] = {"scheduling": {"gang": "kueue"}, "runPolicy": {"activeDeadlineSeconds": 60}}
    status = make_plan(job(**spec)).status
    gated = [pod(i, "Pending", node="", started=None, scheduled=None, gated=True) for i in range(2)]
    held = make_plan(job(status, **spec), *gated, now=after(61))
    assert (held.status.phase, held.status.start_time, held.due) == (JobPhase.QUEUED, None, None)
    admitted = make_plan(job(held.status, **spec), pod(0), pod(1), now=after(100))
    assert (admitted.status.start_time, admitted.due) == (after(100), after(160))
    over = make_plan(job(admitted.status, **spec), pod(0), pod(1), now=after(160))
    assert conditions(over)["Failed"] == ("True", "DeadlineExceeded")


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


def test_condition_scheduled_of_a_job_without_pods_is_false() -> None:
    suspended = make_plan(job(running().status, runPolicy={"suspend": True}), pod(0), pod(1))
    assert conditions(suspended)["Scheduled"] == ("False", "Suspended")
    restarting = make_plan(job(running().status), failed(0, 1), pod(1))
    assert conditions(restarting)["Scheduled"] == ("False", "Restarting")
    never_started = make_plan(job(runPolicy={"suspend": True}))
    assert "Scheduled" not in conditions(never_started)


def test_condition_of_a_removed_obstacle_is_updated() -> None:
    status = make_plan(job()).status
    stuck = make_plan(
        job(status), pod(0, "Pending", started=None, waiting="ImagePullBackOff: no"), pod(1, "Pending", node="")
    )
    assert conditions(stuck)["Running"] == ("False", "Waiting")
    freed = make_plan(job(stuck.status), pod(0), pod(1, "Pending", node="", waiting="Unschedulable: 0/3"))
    assert conditions(freed)["Running"] == ("False", "Starting")


def test_events_of_a_suspension_mention_the_checkpoint_only_if_one_exists() -> None:
    suspended = make_plan(job(runPolicy={"suspend": True}, storage=None))
    assert [e.message for e in suspended.events] == ["the job is suspended"]
    resumed = make_plan(job(suspended.status, storage=None))
    assert [(e.reason, e.message.partition(":")[0]) for e in resumed.events] == [
        ("Resumed", "the job starts"),
        ("NoStorage", "spec.storage is not set"),
    ]
    suspended = make_plan(job(running().status, runPolicy={"suspend": True}), pod(0), pod(1))
    assert [e.message for e in suspended.events] == ["the job is suspended; its checkpoint is kept"]
    resumed = make_plan(job(suspended.status))
    assert [e.message for e in resumed.events] == ["the job resumes from its newest checkpoint"]
    lost = make_plan(job(suspended.status, storage=None))
    assert "starts from the beginning" in lost.events[0].message


@pytest.mark.parametrize("policy", ["activeDeadlineSeconds", "preRunningDeadlineSeconds", "ttlSecondsAfterFinished"])
def test_largest_allowed_policy_value_does_not_overflow(policy: str) -> None:
    planned = make_plan(
        job(running(runPolicy={policy: 2**31 - 1}).status, runPolicy={policy: 2**31 - 1}), pod(0), pod(1)
    )
    assert planned.status.phase == JobPhase.RUNNING
    done = make_plan(job(planned.status, runPolicy={policy: 2**31 - 1}), pod(0, "Succeeded"), pod(1, "Succeeded"))
    assert done.status.phase == JobPhase.SUCCEEDED
    with pytest.raises(ValueError, match="less than or equal to 2147483647"):
        job(runPolicy={policy: 2**31})


@pytest.mark.parametrize("state", ["requested", "pending", "backing off", "with spares"])
def test_job_suspended_in_any_state_deletes_its_pods_and_can_be_resumed(state: str) -> None:
    elastic: dict[str, Any] = {}
    existing: list[PodFacts] = []
    status = make_plan(job()).status
    if state == "pending":
        existing = [pod(0, "Pending", node="", started=None, waiting="Unschedulable: 0/3")]
        status = make_plan(job(status), *existing).status
    elif state == "backing off":
        for attempt in (1, 2):
            status = make_plan(job(status), failed(0, 1, attempt=attempt), pod(1, attempt=attempt)).status
        assert status.next_attempt_time == after(10)
    elif state == "with spares":
        elastic = {"elastic": {"minReplicas": 1, "maxReplicas": 3}, "train": {"batch": 12}, "workers": {"replicas": 3}}
        status = make_plan(
            job(
                running(
                    **elastic,
                ).status,
                **elastic,
            ),
            pod(0),
            pod(1),
            pod(2),
        ).status
        existing = [pod(0), pod(1), pod(2), pod(3, "Pending", node="")]
    suspended = make_plan(job(status, **elastic, runPolicy={"suspend": True}), *existing)
    assert suspended.status.phase == JobPhase.SUSPENDED
    assert suspended.create == ()
    assert {d.name for d in suspended.delete} == {p.name for p in existing}
    assert suspended.status.next_attempt_time is None
    resumed = make_plan(job(suspended.status, **elastic))
    assert sum(o["kind"] == "Pod" for o in resumed.create) == (3 if elastic else 2)
    assert resumed.status.restarts == status.restarts
