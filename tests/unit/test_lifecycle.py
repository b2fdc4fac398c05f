"""The life of a job, rule by rule: what is (job, pods, time) and what should be."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.plans import NOW, after, conditions, failed, job, make, pod, reasons, running
from yolojob_operator.plan.builder import FORCE_AFTER, FORCE_AFTER_READY, Obstacle
from yolojob_operator.plan.lifecycle import PEER_EXIT_TIMEOUT, ROOT_CAUSE_TIMEOUT
from yolojob_operator.plan.node_facts import NodeFacts
from yolojob_operator.plan.pod_facts import PodFacts

from yolojob.api.constants import ExitCode
from yolojob.api.status import JobPhase, Progress, Result, Timing, YoloTrainingJobStatus
from yolojob.api.trainer_report import Failure, Report, TrainerState


def test_a_new_job_gets_a_service_and_all_its_pods_at_once() -> None:
    made = make(job())
    assert [(o["kind"], o["metadata"]["name"]) for o in made.create] == [
        ("Service", "digits"),
        ("Pod", "digits-worker-0"),
        ("Pod", "digits-worker-1"),
    ]
    assert made.status.attempt == 1
    assert made.status.phase == JobPhase.PENDING
    assert conditions(made)["Accepted"] == ("True", "Accepted")


def test_what_is_there_is_not_made_again() -> None:
    first = make(job())
    made = make(job(first.status), pod(0, "Pending", node=""), pod(1, "Pending", node=""))
    assert made.create == ()
    assert made.status.phase == JobPhase.QUEUED
    only_the_other = make(job(first.status), pod(1, "Pending"))
    assert [o["metadata"]["name"] for o in only_the_other.create] == ["digits-worker-0"]


def test_it_runs_when_all_its_pods_run() -> None:
    first = make(job())
    half = make(job(first.status), pod(0), pod(1, "Pending"))
    assert half.status.phase == JobPhase.STARTING
    both = make(job(half.status), pod(0), pod(1))
    assert both.status.phase == JobPhase.RUNNING
    assert both.status.workers.ready == 2
    assert reasons(both) == [], "conditions and pods say it already"
    again = make(job(both.status), pod(0), pod(1))
    assert again.events == ()
    assert again.status == both.status


def test_why_it_waits_stands_in_the_condition() -> None:
    first = make(job())
    words = "Unschedulable: 0/3 nodes are available: 3 Insufficient cpu."
    made = make(job(first.status), pod(0, "Pending", node="", waiting=words), pod(1, "Pending"))
    assert conditions(made)["Scheduled"] == ("False", "Unschedulable")
    assert "Insufficient cpu" in next(c.message for c in made.status.conditions if c.type == "Scheduled")
    pulling = make(job(first.status), pod(0, "Pending", waiting="ImagePullBackOff: no such image"), pod(1, "Pending"))
    assert "no such image" in next(c.message for c in pulling.status.conditions if c.type == "Running")


def test_staging_is_told_and_takes_nothing_away() -> None:
    """While data is fetched there are no epochs yet; what an attempt before had reached stays."""
    report = Report(state=TrainerState.STAGING, progress=Progress(staged_bytes=5, dataset_bytes=10))
    first = make(running(), pod(0), pod(1), report=report).status
    assert first.progress is not None
    assert (first.progress.staged_bytes, first.progress.dataset_bytes, first.progress.epochs) == (5, 10, 0)
    first.progress = Progress(epoch=7, epochs=9, map50=0.5)
    again = make(job(first), pod(0), pod(1), report=report).status
    assert again.progress is not None
    assert (again.progress.epoch, again.progress.epochs, again.progress.map50) == (7, 9, 0.5)
    assert again.progress.staged_bytes == 5


def test_progress_is_taken_over_from_rank_0() -> None:
    report = Report(progress=Progress(epoch=2, epochs=3, images_per_second=312.4), timing=Timing(staging_seconds=1.5))
    made = make(running(), pod(0), pod(1), report=report)
    assert made.status.progress is not None
    assert made.status.progress.epoch == 2
    assert made.status.timing is not None
    assert made.status.timing.staging_seconds == 1.5


def test_success_takes_the_figures_from_the_termination_message() -> None:
    report = Report(
        state=TrainerState.SUCCEEDED,
        progress=Progress(epoch=3, epochs=3, map50=0.93),
        result=Result(weights="pvc://runs/weights/best.pt", map50=0.93, map=0.61),
    )
    last_word = report.model_dump_json(by_alias=True, exclude_none=True)
    waiting = make(running(), pod(0, "Succeeded", message=last_word), pod(1))
    assert waiting.status.phase == JobPhase.RUNNING, "the others may end by themselves"
    assert waiting.due == NOW + PEER_EXIT_TIMEOUT
    made = make(job(waiting.status), pod(0, "Succeeded", message=last_word), pod(1), now=NOW + PEER_EXIT_TIMEOUT)
    assert made.status.phase == JobPhase.SUCCEEDED
    assert made.status.result == report.result
    assert made.status.completion_time == NOW + PEER_EXIT_TIMEOUT
    assert [d.name for d in made.delete] == ["digits-worker-1"], "cleanPodPolicy: Running"
    assert conditions(made)["Running"][0] == "False"
    assert make(job(made.status), pod(0, "Succeeded"), pod(1, "Succeeded")).events == ()


@pytest.mark.parametrize(
    ("policy", "deleted"),
    [("None", []), ("Running", ["digits-worker-1"]), ("All", ["digits-worker-0", "digits-worker-1"])],
)
def test_clean_pod_policy(policy: str, deleted: list[str]) -> None:
    pods = (pod(0, "Succeeded"), pod(1))
    made = make(running(runPolicy={"cleanPodPolicy": policy}), *pods, now=NOW + PEER_EXIT_TIMEOUT)
    assert [d.name for d in made.delete] == deleted


OTHERS_LOST_IT = failed(0, ExitCode.PEER_LOST)


@pytest.mark.parametrize(
    ("pods", "restarts", "disruptions", "reason"),
    [
        ([failed(1, 1), pod(0)], 1, 0, "TrainingFailed"),
        ([failed(1, 1), OTHERS_LOST_IT], 1, 0, "TrainingFailed"),
        ([failed(1, 137, exit_reason="OOMKilled", memory_limit="4Gi"), pod(0)], 1, 0, "OOMKilled"),
        ([failed(1, 143), OTHERS_LOST_IT], 0, 1, "TrainingFailed"),
        ([failed(1, 1, disruption="PreemptionByScheduler: made room"), pod(0)], 0, 1, "PreemptionByScheduler"),
        ([pod(1, deleted=NOW + timedelta(seconds=30)), pod(0)], 0, 1, "PodDeleted"),
        ([pod(0)], 0, 1, "PodDeleted"),
        ([OTHERS_LOST_IT, failed(1, ExitCode.PEER_LOST)], 1, 0, "PeerLost"),
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
def test_one_lost_worker_replaces_the_gang(pods: list[PodFacts], restarts: int, disruptions: int, reason: str) -> None:
    made = make(running(), *pods)
    assert (made.status.restarts, made.status.disruptions) == (restarts, disruptions)
    assert made.status.attempt == 2
    assert made.status.phase == JobPhase.RESTARTING
    assert conditions(made)["Running"] == ("False", reason)
    assert {d.name for d in made.delete} == {p.name for p in pods if not p.deleted}
    assert made.create == (), "names are free only when the old pods are gone"
    gone = make(job(made.status), now=NOW + timedelta(seconds=1))
    assert [o["metadata"]["labels"]["yolojob.dev/attempt"] for o in gone.create if o["kind"] == "Pod"] == ["2", "2"]


def test_a_restart_is_counted_once_however_often_it_is_planned() -> None:
    pods = (failed(1, 1), pod(0))
    made = make(running(), *pods)
    for _ in range(3):
        made = make(job(made.status), *pods)
    assert made.status.restarts == 1
    assert made.status.attempt == 2


def test_survivors_wait_for_the_culprit() -> None:
    made = make(running(), OTHERS_LOST_IT, pod(1))
    assert made.status.attempt == 1
    assert made.due == NOW + ROOT_CAUSE_TIMEOUT
    late = make(job(made.status), OTHERS_LOST_IT, pod(1), now=NOW + ROOT_CAUSE_TIMEOUT)
    assert late.status.attempt == 2
    assert (late.status.restarts, late.status.disruptions) == (0, 1), "a silent peer has lost its node"
    assert {(d.name, d.grace_seconds) for d in late.delete} == {("digits-worker-0", 5), ("digits-worker-1", 5)}


def test_a_worker_that_hangs_again_and_again_is_a_failure() -> None:
    status = running().status
    assert status is not None
    for attempt in range(1, 6):
        gang = failed(0, ExitCode.PEER_LOST, attempt=attempt), pod(1, attempt=attempt)
        status = make(job(status), *gang, now=NOW + ROOT_CAUSE_TIMEOUT).status
    assert (status.disruptions, status.restarts) == (3, 2)


def test_bad_input_fails_at_once_in_the_ranks_own_words() -> None:
    failure = Failure(rank=0, reason="DatasetNotFound", message="there is no folder", exit_code=2)
    words = Report(state=TrainerState.FAILED, failure=failure).model_dump_json(by_alias=True, exclude_none=True)
    made = make(running(), failed(0, ExitCode.BAD_INPUT, message=words), failed(1, ExitCode.PEER_LOST))
    assert made.status.phase == JobPhase.FAILED
    assert made.status.restarts == 0
    assert conditions(made)["Failed"] == ("True", "DatasetNotFound")
    assert "there is no folder" in next(c.message for c in made.status.conditions if c.type == "Failed")


def test_backoff_limit() -> None:
    current = running(runPolicy={"backoffLimit": 1})
    first = make(current, failed(1, 1), pod(0))
    assert first.status.phase == JobPhase.RESTARTING
    status = first.status.model_copy(deep=True)
    made = make(job(status, runPolicy={"backoffLimit": 1}), failed(0, 1, attempt=2), pod(1, attempt=2))
    assert made.status.phase == JobPhase.FAILED
    assert conditions(made)["Failed"] == ("True", "BackoffLimitExceeded")


def test_back_off_grows_and_the_first_restart_is_at_once() -> None:
    status, waits = running(runPolicy={"backoffLimit": 20}).status, []
    assert status is not None
    for attempt in range(1, 12):
        status = make(
            job(status, runPolicy={"backoffLimit": 20}), failed(1, 1, attempt=attempt), pod(0, attempt=attempt)
        ).status
        waits.append((status.next_attempt_time - NOW).total_seconds() if status.next_attempt_time else 0)
    assert waits[:5] == [0, 10, 20, 40, 80]
    assert waits[-1] == 300
    waiting = make(job(status, runPolicy={"backoffLimit": 20}))
    assert waiting.create == ()
    assert waiting.due == status.next_attempt_time


def test_disruptions_are_answered_at_once_until_they_spin() -> None:
    status, waits = running().status, []
    assert status is not None
    for attempt in range(1, 6):
        status.history[-1].start_time = NOW
        gone = pod(1, attempt=attempt, deleted=NOW + timedelta(seconds=30))
        status = make(job(status), gone, pod(0, attempt=attempt)).status
        waits.append((status.next_attempt_time - NOW).total_seconds() if status.next_attempt_time else 0)
    assert waits == [0, 0, 0, 10, 10]
    assert (status.disruptions, status.restarts) == (5, 0)


def test_a_pod_that_does_not_go_is_forced() -> None:
    made = make(running(), pod(0, deleted=NOW), pod(1))
    stuck = pod(0, deleted=NOW)
    waiting = make(job(made.status), stuck)
    assert waiting.delete == ()
    assert waiting.due == NOW + FORCE_AFTER
    forced = make(job(made.status), stuck, now=NOW + FORCE_AFTER)
    assert [(d.name, d.grace_seconds) for d in forced.delete] == [("digits-worker-0", 0)]


def test_a_ready_node_is_given_more_time_to_end_a_pod() -> None:
    """Its kubelet is slow, not gone, and two workers must not write to one storage."""
    made = make(running(), pod(0, deleted=NOW), pod(1))
    stuck = pod(0, deleted=NOW)
    nodes = {"node-0": NodeFacts(name="node-0", ready=True)}
    assert make(job(made.status), stuck, now=NOW + FORCE_AFTER, nodes=nodes).delete == ()
    assert make(job(made.status), stuck, now=NOW + FORCE_AFTER_READY, nodes=nodes).delete != ()


def test_suspend_and_resume() -> None:
    suspended = make(job(running().status, runPolicy={"suspend": True}), pod(0), pod(1))
    assert suspended.status.phase == JobPhase.SUSPENDED
    assert len(suspended.delete) == 2
    assert reasons(suspended) == ["Suspended"]
    still = make(job(suspended.status, runPolicy={"suspend": True}))
    assert still.create == ()
    assert still.events == ()
    back = make(job(suspended.status), pod(0, deleted=NOW + timedelta(seconds=9)))
    assert back.status.attempt == 2
    assert back.create == (), "the old pod still has the name"
    assert [o["kind"] for o in make(job(back.status)).create] == ["Service", "Pod", "Pod"]
    assert (back.status.restarts, back.status.disruptions) == (0, 0)


def test_suspended_from_the_start() -> None:
    made = make(job(runPolicy={"suspend": True}))
    assert made.create == ()
    assert made.status.phase == JobPhase.SUSPENDED
    assert make(job(made.status)).status.attempt == 1


def test_active_deadline() -> None:
    policy = {"activeDeadlineSeconds": 60}
    made = make(running(runPolicy=policy), pod(0), pod(1))
    assert made.due == NOW + timedelta(seconds=60)
    late = make(job(made.status, runPolicy=policy), pod(0), pod(1), now=NOW + timedelta(seconds=60))
    assert conditions(late)["Failed"] == ("True", "DeadlineExceeded")
    assert len(late.delete) == 2


def test_pre_running_deadline_names_the_cause() -> None:
    policy = {"preRunningDeadlineSeconds": 30}
    first = make(job(runPolicy=policy))
    assert first.due == NOW + timedelta(seconds=30)
    waiting = pod(0, "Pending", waiting="ImagePullBackOff: no such image")
    late = make(job(first.status, runPolicy=policy), waiting, pod(1), now=NOW + timedelta(seconds=30))
    assert conditions(late)["Failed"] == ("True", "ImagePullBackOff")
    assert "no such image" in next(c.message for c in late.status.conditions if c.type == "Failed")


def test_pre_running_deadline_names_the_cause_after_a_restart_of_the_operator() -> None:
    """What stood in the way is remembered in the condition."""
    policy = {"preRunningDeadlineSeconds": 60}
    obstacle = Obstacle(reason="QuotaExceeded", message="exceeded quota: team")
    made = make(job(make(job(runPolicy=policy)).status, runPolicy=policy), obstacle=obstacle)
    made = make(job(made.status, runPolicy=policy), now=NOW + timedelta(seconds=60))
    assert conditions(made)["Failed"] == ("True", "QuotaExceeded")


def test_ttl() -> None:
    policy = {"ttlSecondsAfterFinished": 5}
    done = make(running(runPolicy=policy), pod(0, "Succeeded"), pod(1, "Succeeded"))
    kept = make(job(done.status, runPolicy=policy), pod(0, "Succeeded"))
    assert not kept.delete_job
    assert kept.due == NOW + timedelta(seconds=5)
    assert make(job(done.status, runPolicy=policy), now=NOW + timedelta(seconds=5)).delete_job


def test_somebody_elses_job_is_left_alone() -> None:
    made = make(job(runPolicy={"managedBy": "kueue.x-k8s.io/multikueue"}))
    assert made.create == ()
    assert made.status == YoloTrainingJobStatus()


def test_a_foreign_object_with_our_name_is_neither_taken_nor_deleted() -> None:
    taken = Obstacle(reason="NameConflict", message="a pod digits-worker-0 exists that is not this job's")
    made = make(job(make(job()).status), obstacle=taken)
    assert made.delete == ()
    assert conditions(made)["Scheduled"] == ("False", "NameConflict")
    assert made.due is not None, "it tries again"
    half = make(job(made.status), pod(0, "Pending", node=""), obstacle=taken)
    assert conditions(half)["Scheduled"] == ("False", "NameConflict"), "and does not say otherwise meanwhile"


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"dataset": {"uri": "file:///data"}}, "LaptopOnly"),
        ({"workers": {"gpu": {"required": False}}}, "NodesUnknown"),
        ({"workers": {"template": {"spec": {"restartPolicy": "Always"}}}}, "TemplateForbidden"),
    ],
)
def test_what_a_cluster_cannot_do_is_said(spec: dict[str, Any], reason: str) -> None:
    made = make(job(**spec))
    assert conditions(made)["Accepted"] == ("False", reason)
    assert made.create == ()


def test_a_gang_that_runs_is_looked_after_though_its_like_would_be_refused_now() -> None:
    """The chart was tightened meanwhile: no new pods, but it may come to its end."""
    forbidden = {"workers": {"replicas": 2, "template": {"spec": {"hostNetwork": True}}}}
    current = job(running().status, **forbidden)
    made = make(current, pod(0), pod(1))
    assert conditions(made)["Accepted"] == ("False", "TemplateForbidden")
    assert made.status.phase == JobPhase.RUNNING
    done = make(job(made.status, **forbidden), pod(0, "Succeeded"), pod(1, "Succeeded"))
    assert done.status.phase == JobPhase.SUCCEEDED
    lost = make(job(made.status, **forbidden), failed(0, 1), pod(1))
    assert make(job(lost.status, **forbidden)).create == ()


codes = st.sampled_from([0, 1, 2, 76, 137, 143])
phases = st.sampled_from(["Pending", "Running", "Succeeded", "Failed"])


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 1), phases, codes, st.booleans(), st.integers(0, 1)), max_size=3), max_size=8
    )
)
def test_invariants_over_any_history(history: list[list[tuple[int, str, int, bool, int]]]) -> None:
    """Whatever pods do: counters never fall, the limit holds, nothing is made twice, an end is an end."""
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
        made = make(job(status), *pods.values(), now=now)
        before = status or YoloTrainingJobStatus()
        if before.completion_time:
            assert made.status.phase == before.phase
            assert made.create == ()
        assert made.status.attempt >= before.attempt
        assert before.restarts <= made.status.restarts <= 3
        assert made.status.disruptions >= before.disruptions
        present = {p.name for p in pods.values()}
        assert not present & {o["metadata"]["name"] for o in made.create if o["kind"] == "Pod"}
        assert len({d.uid for d in made.delete}) == len(made.delete)
        # What is written is what is read back.
        text = made.status.model_dump_json(by_alias=True, exclude_none=True)
        status = YoloTrainingJobStatus.model_validate(json.loads(text))
        now += timedelta(seconds=7)


def test_the_first_gang_is_recognised_though_no_status_was_written() -> None:
    policy = {"preRunningDeadlineSeconds": 4}
    waiting = {"node": "", "scheduled": None, "started": None, "created": NOW - timedelta(seconds=3)}
    made = make(job(runPolicy=policy), pod(0, "Pending", **waiting), pod(1, "Pending", **waiting))
    assert made.create == ()
    assert made.status.attempt == 1
    assert made.status.history[-1].start_time == NOW - timedelta(seconds=3)
    assert made.due == NOW + timedelta(seconds=1)
    assert made.status.start_time == NOW - timedelta(seconds=3), "activeDeadlineSeconds counts from the first pods"
    assert made.status.timing is not None
    assert (made.status.timing.queued_seconds, made.status.timing.scheduling_seconds) == (7, 3)


FORBIDDEN = {"workers": {"replicas": 2, "template": {"spec": {"hostNetwork": True}}}}


class TestRefusedMeanwhile:
    """Its like would be refused now, and the job has begun."""

    def test_its_pods_vanish(self) -> None:
        made = make(job(running().status, **FORBIDDEN))
        assert (made.status.phase, made.status.disruptions) == (JobPhase.RESTARTING, 1)
        assert make(job(made.status, **FORBIDDEN)).create == ()

    def test_deadlines_are_kept(self) -> None:
        spec = {**FORBIDDEN, "runPolicy": {"activeDeadlineSeconds": 60}}
        lost = make(job(running().status, **spec)).status
        assert make(job(lost, **spec), now=after(30)).due == after(60)
        assert conditions(make(job(lost, **spec), now=after(60)))["Failed"] == ("True", "DeadlineExceeded")

    def test_it_can_be_suspended(self) -> None:
        made = make(job(running().status, **FORBIDDEN, runPolicy={"suspend": True}))
        assert made.status.phase == JobPhase.SUSPENDED

    def test_the_device_is_no_second_verdict(self) -> None:
        gpu = {"types": ["T4"], "required": False}
        spec = {"workers": {"replicas": 2, "gpu": gpu}}
        status = make(job(make(job(**spec), nodes={}).status, **spec), pod(0), pod(1), nodes={}).status
        assert next(c.reason for c in status.conditions if c.type == "Accepted") == "NoGpu"
        refused = {"workers": {**FORBIDDEN["workers"], "gpu": gpu}}
        for moment in (10, 20):
            made = make(job(status, **refused), pod(0), pod(1), now=after(moment), nodes={})
            assert conditions(made)["Accepted"] == ("False", "TemplateForbidden")
            status = made.status
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
def test_a_template_that_is_none_is_said(template: dict[str, Any], gang: str) -> None:
    made = make(job(workers={"replicas": 2, "template": template}, scheduling={"gang": gang}))
    assert conditions(made)["Accepted"] == ("False", "TemplateInvalid")
    assert made.create == ()


class TestTrained:
    """Worker 0 has succeeded, and the others have a moment left to end."""

    DONE = pod(0, "Succeeded"), pod(1)

    @pytest.mark.parametrize("policy", [{"activeDeadlineSeconds": 2}, {"suspend": True}])
    def test_nothing_takes_it_away(self, policy: dict[str, Any]) -> None:
        waiting = make(job(running().status, runPolicy=policy), *self.DONE, now=after(3))
        assert waiting.due == NOW + PEER_EXIT_TIMEOUT
        assert (waiting.status.attempt, waiting.delete) == (1, ())
        made = make(job(waiting.status, runPolicy=policy), *self.DONE, now=NOW + PEER_EXIT_TIMEOUT)
        assert made.status.phase == JobPhase.SUCCEEDED

    def test_its_ttl_is_due_at_once(self) -> None:
        ttl = {"ttlSecondsAfterFinished": 7}
        made = make(job(running().status, runPolicy=ttl), pod(0, "Succeeded"), pod(1, "Succeeded"))
        assert made.due == after(7)
        none = make(job(running().status, runPolicy={"ttlSecondsAfterFinished": 0}), *self.DONE, now=after(9))
        assert none.delete_job

    @pytest.mark.parametrize("finished", [after(3600), None])
    def test_a_nodes_clock_does_not_hold_it_up(self, finished: datetime | None) -> None:
        assert make(running(), pod(0, "Succeeded", finished=finished), pod(1)).status.phase == JobPhase.SUCCEEDED


def test_replicas_that_changed_in_a_suspension_that_nobody_saw() -> None:
    status = running().status
    wider = {"workers": {"replicas": 4}}
    made = make(job(status, **wider), pod(0), pod(1))
    assert made.status.history[-1].workers == 4
    assert (made.status.restarts, made.status.disruptions) == (0, 0)
    lost = make(job(status, **wider), failed(0, 1), pod(1))
    assert lost.status.history[-1].workers == 4


def test_the_first_gang_is_of_the_size_that_it_was_made_with() -> None:
    """Scaled before the first status was written: whoever runs already waits for as many as there were then."""
    bounds = {"elastic": {"minReplicas": 1, "maxReplicas": 4}, "train": {"batch": 16}}
    there = [pod(i, workers=4) for i in range(4)]
    made = make(job(None, workers={"replicas": 2}, **bounds), *there)
    assert [r.workers for r in made.status.history] == [4, 2]
    assert {d.name for d in made.delete} == {p.name for p in there}


def test_waiting_in_vain_for_one_that_has_no_place_is_no_failure() -> None:
    status = make(job()).status
    unplaced = pod(1, "Pending", node="", started=None, scheduled=None, waiting="Unschedulable: 0/3 nodes")
    for attempt in range(1, 6):
        there = failed(0, ExitCode.PEER_LOST, attempt=attempt), dataclasses.replace(unplaced, attempt=attempt)
        status = make(job(status), *there, now=after(600 * attempt)).status
    assert (status.restarts, status.disruptions, status.phase) == (0, 5, JobPhase.RESTARTING)
    assert "0/3 nodes" in (status.history[-2].message or "")


def test_words_of_any_length_fit_a_condition() -> None:
    failure = Failure(rank=0, reason="X" * 2000, message="y" * 40_000, exit_code=2)
    words = Report(state=TrainerState.FAILED, failure=failure).model_dump_json(by_alias=True, exclude_none=True)
    made = make(running(), failed(0, ExitCode.BAD_INPUT, message=words), pod(1))
    assert made.status.phase == JobPhase.FAILED


class TestSilentNodes:
    """Kubernetes evicts nobody from a zone in which most nodes are silent. Then it is on us."""

    @staticmethod
    def nodes(**facts: Any) -> dict[str, NodeFacts]:
        return {"node-0": NodeFacts(name="node-0", **facts)}

    def test_one_that_stays_silent_ends_the_attempt(self) -> None:
        silent = self.nodes(ready=False, since=NOW)
        waits = make(running(), pod(0), pod(1), now=after(59), nodes=silent)
        assert (waits.status.attempt, waits.due) == (1, after(60))
        made = make(running(), pod(0), pod(1), now=after(60), nodes=silent)
        assert (made.status.attempt, made.status.disruptions, made.status.restarts) == (2, 1, 0)
        assert made.status.history[0].reason == "NodeLost"
        assert "node node-0 of digits-worker-0 is not ready" in (made.status.history[0].message or "")
        assert {d.name for d in made.delete} == {"digits-worker-0", "digits-worker-1"}

    def test_one_that_is_no_more(self) -> None:
        made = make(running(), pod(0), pod(1), now=after(60), nodes={})
        assert "no more" in (made.status.history[0].message or "")
        assert make(running(), pod(0), pod(1), now=after(50), nodes={}).status.attempt == 1, "we may be late to see it"

    def test_others_are_left_alone(self) -> None:
        for nodes in (self.nodes(ready=True, since=NOW), None):
            made = make(running(), pod(0), pod(1), now=after(3600), nodes=nodes)
            assert (made.status.attempt, made.due) == (1, None)


def test_a_queue_stops_the_clock_of_the_active_deadline() -> None:
    spec: dict[str, Any] = {"scheduling": {"gang": "kueue"}, "runPolicy": {"activeDeadlineSeconds": 60}}
    status = make(job(**spec)).status
    gated = [pod(i, "Pending", node="", started=None, scheduled=None, gated=True) for i in range(2)]
    held = make(job(status, **spec), *gated, now=after(61))
    assert (held.status.phase, held.status.start_time, held.due) == (JobPhase.QUEUED, None, None)
    admitted = make(job(held.status, **spec), pod(0), pod(1), now=after(100))
    assert (admitted.status.start_time, admitted.due) == (after(100), after(160))
    over = make(job(admitted.status, **spec), pod(0), pod(1), now=after(160))
    assert conditions(over)["Failed"] == ("True", "DeadlineExceeded")


def test_an_edit_changes_no_attempt_that_has_begun() -> None:
    """Worker 1 is still to be made when the job is edited: the pods of one gang are made of one specification."""
    status = make(job()).status
    edited = job(status)
    edited.metadata.generation = 2
    made = make(edited, pod(0, generation=1))
    assert (made.status.attempt, made.status.disruptions, made.create) == (2, 0, ())
    assert [d.name for d in made.delete] == ["digits-worker-0"]
    assert made.status.history[0].reason == "SpecChanged"
    edited.status = made.status
    anew = make(edited)
    assert {p["metadata"]["annotations"]["yolojob.dev/generation"] for p in anew.create if p["kind"] == "Pod"} == {"2"}
    whole = make(edited, pod(0, attempt=2, generation=1), pod(1, attempt=2, generation=1))
    assert whole.status.attempt == 2, "a gang that is complete stays as it is"


def test_who_has_no_pods_is_not_scheduled() -> None:
    asleep = make(job(running().status, runPolicy={"suspend": True}), pod(0), pod(1))
    assert conditions(asleep)["Scheduled"] == ("False", "Suspended")
    again = make(job(running().status), failed(0, 1), pod(1))
    assert conditions(again)["Scheduled"] == ("False", "Restarting")
    never = make(job(runPolicy={"suspend": True}))
    assert "Scheduled" not in conditions(never)


def test_an_obstacle_that_is_gone_is_not_said_any_more() -> None:
    status = make(job()).status
    stuck = make(
        job(status), pod(0, "Pending", started=None, waiting="ImagePullBackOff: no"), pod(1, "Pending", node="")
    )
    assert conditions(stuck)["Running"] == ("False", "Waiting")
    freed = make(job(stuck.status), pod(0), pod(1, "Pending", node="", waiting="Unschedulable: 0/3"))
    assert conditions(freed)["Running"] == ("False", "Starting")


def test_the_words_of_a_suspension_are_true() -> None:
    asleep = make(job(runPolicy={"suspend": True}, storage=None))
    assert [e.message for e in asleep.events] == ["the job is suspended"]
    awake = make(job(asleep.status, storage=None))
    assert [(e.reason, e.message.partition(":")[0]) for e in awake.events] == [
        ("Resumed", "the job begins"),
        ("NoStorage", "spec.storage is not set"),
    ]
    asleep = make(job(running().status, runPolicy={"suspend": True}), pod(0), pod(1))
    assert [e.message for e in asleep.events] == ["the job is suspended; its checkpoint stays"]
    awake = make(job(asleep.status))
    assert [e.message for e in awake.events] == ["the job goes on from its newest checkpoint"]
    lost = make(job(asleep.status, storage=None))
    assert "begins anew" in lost.events[0].message


@pytest.mark.parametrize("policy", ["activeDeadlineSeconds", "preRunningDeadlineSeconds", "ttlSecondsAfterFinished"])
def test_the_longest_times_can_be_reckoned_with(policy: str) -> None:
    made = make(job(running(runPolicy={policy: 2**31 - 1}).status, runPolicy={policy: 2**31 - 1}), pod(0), pod(1))
    assert made.status.phase == JobPhase.RUNNING
    done = make(job(made.status, runPolicy={policy: 2**31 - 1}), pod(0, "Succeeded"), pod(1, "Succeeded"))
    assert done.status.phase == JobPhase.SUCCEEDED
    with pytest.raises(ValueError, match="less than or equal to 2147483647"):
        job(runPolicy={policy: 2**31})


@pytest.mark.parametrize("moment", ["asked for", "pending", "backing off", "with spares"])
def test_suspended_at_any_moment(moment: str) -> None:
    """Nothing is created, all that is there goes, and it can be resumed."""
    elastic: dict[str, Any] = {}
    there: list[PodFacts] = []
    status = make(job()).status
    if moment == "pending":
        there = [pod(0, "Pending", node="", started=None, waiting="Unschedulable: 0/3")]
        status = make(job(status), *there).status
    elif moment == "backing off":
        for attempt in (1, 2):
            status = make(job(status), failed(0, 1, attempt=attempt), pod(1, attempt=attempt)).status
        assert status.next_attempt_time == after(10)
    elif moment == "with spares":
        elastic = {"elastic": {"minReplicas": 1, "maxReplicas": 3}, "train": {"batch": 12}, "workers": {"replicas": 3}}
        status = make(
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
        there = [pod(0), pod(1), pod(2), pod(3, "Pending", node="")]
    asleep = make(job(status, **elastic, runPolicy={"suspend": True}), *there)
    assert asleep.status.phase == JobPhase.SUSPENDED
    assert asleep.create == ()
    assert {d.name for d in asleep.delete} == {p.name for p in there}
    assert asleep.status.next_attempt_time is None
    awake = make(job(asleep.status, **elastic))
    assert sum(o["kind"] == "Pod" for o in awake.create) == (3 if elastic else 2)
    assert awake.status.restarts == status.restarts
