"""The lifecycle of a job, rule by rule: the plan for a job, its pods and a time."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.plans import NOW, after, conditions, created, failed, job, make_plan, pod, reasons, running
from yolojob_operator.objects.defaults import Defaults
from yolojob_operator.plan.builder import Observed, Obstacle
from yolojob_operator.plan.lifecycle import PEER_EXIT_TIMEOUT, plan
from yolojob_operator.plan.pod_facts import PodFacts

from yolojob.api.job import YoloTrainingJob
from yolojob.api.status import JobPhase, Progress, Result, Timing, YoloTrainingJobStatus
from yolojob.api.trainer_report import Report, TrainerState


def test_plan_of_a_new_job_creates_a_service_and_all_pods() -> None:
    planned = make_plan(job())
    assert [(o["kind"], o["metadata"]["name"]) for o in planned.create] == [
        ("Service", "digits"),
        ("NetworkPolicy", "digits-7d3e5561"),
        ("Secret", "digits-7d3e5561"),
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
    assert [o["metadata"]["name"] for o in created(only_one_exists)] == ["digits-worker-0"]


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
    assert [o["kind"] for o in make_plan(job(resumed.status)).create] == [
        "Service",
        "NetworkPolicy",
        "Secret",
        "Pod",
        "Pod",
    ]
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


def test_job_with_an_empty_manager_is_reconciled() -> None:
    """Server-side apply and templates leave empty strings behind."""
    assert make_plan(job(runPolicy={"managedBy": ""})).create


def test_name_conflict_is_reported_and_the_foreign_pod_is_kept() -> None:
    conflict = Obstacle(reason="NameConflict", message="a pod digits-worker-0 exists that is not this job's")
    planned = make_plan(job(make_plan(job()).status), obstacle=conflict)
    assert planned.delete == ()
    assert conditions(planned)["Scheduled"] == ("False", "NameConflict")
    assert planned.due is not None, "it retries"
    half = make_plan(job(planned.status), pod(0, "Pending", node=""), obstacle=conflict)
    assert conditions(half)["Scheduled"] == ("False", "NameConflict"), "the condition stays while pods exist"


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


def edited(status: YoloTrainingJobStatus | None, **spec: Any) -> YoloTrainingJob:
    """Returns the job after an edit that increased its generation."""
    changed = job(status, **spec)
    changed.metadata.generation = 2
    return changed


@pytest.mark.parametrize(
    "spec",
    [
        {"train": {"epochs": 7}},
        {"workers": {"replicas": 2, "image": "other:1"}},
        {"workers": {"replicas": 2, "resources": {"limits": {"memory": "9Gi"}}}},
        {"checkpoint": {"everyEpochs": 3}},
        {"scheduling": {"priorityClassName": "high"}},
        {"workers": {"replicas": 2, "template": {"spec": {"nodeSelector": {"zone": "a"}}}}},
    ],
)
def test_edit_of_a_running_job_is_accepted_and_told(spec: dict[str, Any]) -> None:
    old = [pod(index, generation=1) for index in range(2)]
    planned = make_plan(edited(running().status, **spec), *old)
    assert conditions(planned)["Accepted"] == ("True", "EditPending")
    assert reasons(planned) == ["EditPending"]
    again = make_plan(edited(planned.status, **spec), *old)
    assert reasons(again) == [], "once for each edit"
    assert planned.delete == (), "the running pods are untouched"


@pytest.mark.parametrize(
    "spec",
    [
        {"runPolicy": {"backoffLimit": 9}},
        {"pricing": {"perWorkerHour": 2.0}},
        {},
    ],
)
def test_edit_that_applies_at_once_is_not_pending(spec: dict[str, Any]) -> None:
    planned = make_plan(edited(running().status, **spec), *(pod(index, generation=1) for index in range(2)))
    assert conditions(planned)["Accepted"] == ("True", "Accepted")


def test_pending_edit_applies_from_the_next_attempt() -> None:
    spec: dict[str, Any] = {"workers": {"replicas": 2, "image": "other:1"}}
    restarted = make_plan(edited(running().status, **spec), *(failed(index, 1, generation=1) for index in range(2)))
    planned = make_plan(edited(restarted.status, **spec))
    assert conditions(planned)["Accepted"] == ("True", "Accepted")
    assert {p["spec"]["containers"][0]["image"] for p in created(planned)} == {"other:1"}


def test_attempt_keeps_its_image_when_the_operator_is_upgraded() -> None:
    """An operator with another default image is started while the pods of an attempt are being created."""
    before = make_plan(job())
    upgraded = Defaults(image="trainer:next")
    rest = plan(job(before.status), Observed(pods=(pod(0, "Pending", node=""),)), NOW, upgraded)
    assert [p["spec"]["containers"][0]["image"] for p in created(rest)] == ["trainer:test"]
    restarted = plan(job(rest.status), Observed(pods=(failed(0, 1), failed(1, 1))), NOW, upgraded)
    following = plan(job(restarted.status), Observed(), NOW, upgraded)
    assert {p["spec"]["containers"][0]["image"] for p in created(following)} == {"trainer:next"}


def test_attempt_whose_status_was_not_written_keeps_its_image() -> None:
    """The first pods are created before any status is written."""
    upgraded = Defaults(image="trainer:next")
    found = (pod(0, generation=1, image="trainer:test"),)
    planned = plan(job(), Observed(pods=found), NOW, upgraded)
    assert [p["spec"]["containers"][0]["image"] for p in created(planned)] == ["trainer:test"]
    assert planned.status.history[-1].image == "trainer:test"
    edit = make_plan(edited(planned.status, train={"epochs": 7}), pod(0, generation=1), pod(1, generation=1))
    assert conditions(edit)["Accepted"] == ("True", "EditPending")


def test_edit_of_an_attempt_without_pods_applies_at_once() -> None:
    """An admission policy refuses the image; the user corrects it."""
    first = make_plan(job(workers={"replicas": 2, "image": "bad:1"}))
    corrected = edited(first.status, workers={"replicas": 2, "image": "good:1"})
    planned = make_plan(corrected, obstacle=Obstacle(reason="PodForbidden", message="refused"))
    assert {p["spec"]["containers"][0]["image"] for p in created(planned)} == {"good:1"}
    later = make_plan(edited(planned.status, workers={"replicas": 2, "image": "good:1"}), pod(0, generation=2))
    assert conditions(later)["Accepted"] == ("True", "Accepted")


def test_rest_of_an_attempt_gets_its_secret() -> None:
    """An operator that creates no secrets has created the first pod."""
    planned = make_plan(job(make_plan(job()).status), pod(0, "Pending", node=""))
    assert len(created(planned, "Secret")) == 1
    assert len(created(planned)) == 1
