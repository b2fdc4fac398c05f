"""The lifecycle of jobs with the real operator and API server; annotations decide how the simulated pods exit."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from support import eventually, minimal
from support.jobs import attempts, job, phase, suspend
from support.kube import Kube
from support.operator_process import Operator

pytestmark = pytest.mark.usefixtures("operator")


def has_pods(kube: Kube, name: str, count: int) -> bool:
    """Whether a job has this number of pods."""
    return len(kube.pods(name)) == count


def test_job_that_succeeds_has_a_result_and_one_event(kube: Kube) -> None:
    message = json.dumps(
        {
            "state": "Succeeded",
            "progress": {"epoch": 3, "epochs": 3, "map50": 0.9},
            "result": {"weights": "pvc://x/weights/best.pt", "map50": 0.9, "map": 0.6},
        }
    )
    kube.create(job("good", 0, message=message))
    status = phase(kube, "good", "Succeeded")
    assert status["result"] == {"weights": "pvc://x/weights/best.pt", "map50": 0.9, "map": 0.6}
    assert status["progress"]["epoch"] == 3
    assert [c["type"] for c in status["conditions"] if c["status"] == "True"] == ["Accepted", "Scheduled", "Succeeded"]
    pod = kube.pods("good")[0]
    assert pod["metadata"]["ownerReferences"][0]["kind"] == "YoloTrainingJob"
    service = kube.get("service", "good")
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    reasons = [e["reason"] for e in kube.get("events", "--field-selector=involvedObject.name=good")["items"]]
    assert reasons == ["Succeeded"], "a successful job has a single event"


def test_job_that_fails_repeatedly_exceeds_its_backoff_limit(kube: Kube) -> None:
    kube.create(job("bad", 1, runPolicy={"backoffLimit": 1}))
    status = phase(kube, "bad", "Failed")
    assert (status["attempt"], status["restarts"], status["disruptions"]) == (2, 1, 0)
    failed = kube.condition("bad", "Failed")
    assert failed["reason"] == "BackoffLimitExceeded"
    assert "exited with code 1" in failed["message"]


def test_backoff_between_attempts_grows(kube: Kube) -> None:
    """The first restart is immediate, the second one after 10 s, the third one after 20 s."""
    kube.create(job("patient", 1, runPolicy={"backoffLimit": 3}))
    created: dict[str, datetime] = {}

    def ended() -> bool:
        for pod in kube.pods("patient"):
            attempt = pod["metadata"]["labels"]["yolojob.dev/attempt"]
            created.setdefault(attempt, datetime.fromisoformat(pod["metadata"]["creationTimestamp"]))
        return kube.status("patient").get("phase") == "Failed"

    eventually(ended, "the job has failed", seconds=90)
    times = [created[attempt] for attempt in sorted(created)]
    assert len(times) == 4, "each attempt was seen"
    waits = [(later - earlier).total_seconds() for earlier, later in itertools.pairwise(times)]
    for wait, expected in zip(waits, (1, 11, 21), strict=True):  # each attempt runs for a second
        assert wait >= expected - 1, waits  # creation times are whole seconds


def test_bad_input_fails_the_job_without_a_restart(kube: Kube) -> None:
    failure = {"rank": 0, "reason": "DatasetNotFound", "message": "there is no folder", "exitCode": 2}
    kube.create(job("wrong", 2, message=json.dumps({"state": "Failed", "failure": failure})))
    status = phase(kube, "wrong", "Failed")
    assert (status["attempt"], status["restarts"]) == (1, 0)
    condition = kube.condition("wrong", "Failed")
    assert condition["reason"] == "DatasetNotFound"
    assert "(rank 0): there is no folder" in condition["message"]


def test_deleted_pod_replaces_the_whole_gang(kube: Kube) -> None:
    kube.create(job("gone"))
    phase(kube, "gone", "Running")
    before = {p["metadata"]["uid"] for p in kube.pods("gone")}
    kube.run("delete", "pod", "gone-worker-1", "--wait=false")
    eventually(lambda: attempts(kube, "gone") == {"2"} and len(kube.pods("gone")) == 2, "there is a new gang")
    status = phase(kube, "gone", "Running")
    assert (status["attempt"], status["restarts"], status["disruptions"]) == (2, 0, 1)
    assert not before & {p["metadata"]["uid"] for p in kube.pods("gone")}


def test_suspended_job_has_no_pods_and_resumes_with_a_new_attempt(kube: Kube) -> None:
    kube.create(job("sleepy"))
    phase(kube, "sleepy", "Running")
    for on, wanted, pods in ((True, "Suspended", 0), (False, "Running", 2)):
        suspend(kube, "sleepy", on)
        phase(kube, "sleepy", wanted)
        eventually(partial(has_pods, kube, "sleepy", pods), f"the job has {pods} pods")
    status = kube.status("sleepy")
    assert (status["attempt"], status["restarts"], status["disruptions"]) == (2, 0, 0)


def test_job_suspended_before_it_runs_deletes_its_pods(kube: Kube) -> None:
    """While it is unschedulable, and between two attempts."""
    lost = job("homeless")
    lost["spec"]["workers"]["template"]["spec"]["nodeSelector"] = {"nowhere": "at-all"}
    kube.create(lost)
    eventually(
        lambda: kube.condition("homeless", "Scheduled").get("reason") == "Unschedulable", "the job is unschedulable"
    )
    kube.create(job("clumsy", 1))
    eventually(lambda: kube.status("clumsy").get("nextAttemptTime"), "the job waits for its third attempt")
    for name in ("homeless", "clumsy"):
        suspend(kube, name, True)
        status = phase(kube, name, "Suspended")
        eventually(partial(has_pods, kube, name, 0), "its pods are gone")
        assert "nextAttemptTime" not in status
        assert kube.condition(name, "Scheduled")["status"] == "False"
    assert kube.status("clumsy")["restarts"] == 2


def test_conditions_and_events_of_a_job_are_reported_once(kube: Kube) -> None:
    """A failed attempt, a suspension, a resumption, and the final failure."""
    kube.create(job("story", 1, "3s", runPolicy={"backoffLimit": 1}))
    phase(kube, "story", "Running")
    eventually(lambda: kube.status("story").get("attempt") == 2, "the job is restarted")
    phase(kube, "story", "Running")
    before = {c["type"]: c for c in kube.status("story")["conditions"]}
    suspend(kube, "story", True)
    phase(kube, "story", "Suspended")
    suspend(kube, "story", False)
    phase(kube, "story", "Running")
    phase(kube, "story", "Failed")
    current = kube.get("ytj", "story")
    now = datetime.now(UTC)
    created = datetime.fromisoformat(current["metadata"]["creationTimestamp"])
    for condition in current["status"]["conditions"]:
        assert condition["observedGeneration"] == current["metadata"]["generation"] == 3, condition
        assert created <= datetime.fromisoformat(condition["lastTransitionTime"]) <= now + timedelta(seconds=1)
        assert condition["reason"]
        assert condition["message"]
    after = {c["type"]: c for c in current["status"]["conditions"]}
    assert after["Accepted"]["lastTransitionTime"] == before["Accepted"]["lastTransitionTime"], (
        "the condition has not changed"
    )
    assert after["Running"]["lastTransitionTime"] > before["Running"]["lastTransitionTime"]
    events = kube.get("events", "--field-selector=involvedObject.name=story")["items"]
    counts = Counter(e["reason"] for e in events)
    assert counts == {"Restarting": 1, "Running": 2, "Suspended": 1, "Resumed": 1, "Failed": 1}, counts
    assert all(e["count"] == 1 for e in events)


def test_deadline_and_ttl_are_kept_without_any_other_event(kube: Kube) -> None:
    kube.create(job("late", runPolicy={"activeDeadlineSeconds": 3, "ttlSecondsAfterFinished": 2}))
    status = phase(kube, "late", "Failed")
    assert kube.condition("late", "Failed")["reason"] == "DeadlineExceeded"
    took = datetime.fromisoformat(status["completionTime"]) - datetime.fromisoformat(status["startTime"])
    assert took.total_seconds() >= 3
    eventually(lambda: not kube.get("yolotrainingjob", "late"), "the job is deleted", seconds=20)


def test_unschedulable_job_has_the_message_of_the_scheduler(kube: Kube) -> None:
    document = job("huge")
    document["spec"]["workers"]["resources"] = {"requests": {"cpu": "1000"}}
    kube.create(document)
    eventually(
        lambda: kube.condition("huge", "Scheduled").get("reason") == "Unschedulable", "the condition has the reason"
    )
    assert "Insufficient cpu" in kube.condition("huge", "Scheduled")["message"]
    assert kube.status("huge")["phase"] == "Queued"
    deadline = json.dumps({"spec": {"runPolicy": {"preRunningDeadlineSeconds": 1}}})
    kube.run("patch", "yolotrainingjob", "huge", "--type", "merge", "--patch", deadline)
    phase(kube, "huge", "Failed")
    failed = kube.condition("huge", "Failed")
    assert failed["reason"] == "Unschedulable"
    assert "Insufficient cpu" in failed["message"]
    eventually(lambda: not kube.pods("huge"), "its pods are deleted")


@pytest.mark.exclusive("gpu-nodes")
def test_gpu_job_runs_on_nodes_with_its_gpu_types(kube: Kube) -> None:
    document = minimal("gpus", workers={"replicas": 2, "gpu": {"count": 8, "types": ["A100", "H100"]}})
    kube.create(document)
    phase(kube, "gpus", "Running")
    assert {p["spec"]["nodeName"][:3] for p in kube.pods("gpus")} == {"gpu"}
    kube.create(minimal("none", workers={"gpu": {"types": ["V100"]}}))
    eventually(lambda: kube.condition("none", "Scheduled").get("reason") == "Unschedulable", "no node has a V100")


def test_foreign_pod_with_a_workers_name_is_a_name_conflict(kube: Kube) -> None:
    container = {"name": "c", "image": "x"}
    foreign = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "taken-worker-1"},
        "spec": {"containers": [container]},
    }
    kube.create(foreign)
    uid = kube.get("pod", "taken-worker-1")["metadata"]["uid"]
    kube.create(job("taken"))
    eventually(
        lambda: kube.condition("taken", "Scheduled").get("reason") == "NameConflict",
        "the condition reports the conflict",
    )
    assert "taken-worker-1" in kube.condition("taken", "Scheduled")["message"]
    assert kube.get("pod", "taken-worker-1")["metadata"]["uid"] == uid
    kube.run("delete", "pod", "taken-worker-1")
    phase(kube, "taken", "Running", seconds=60)


def test_killed_operator_repeats_and_loses_nothing(kube: Kube, operator: Operator) -> None:
    """No pod is created twice, no job is lost, and deadlines are kept."""
    names = [f"many-{i}" for i in range(10)]
    for i, name in enumerate(names):
        kube.create(job(name, 0 if i % 2 else 1, "3s", runPolicy={"backoffLimit": 1}))
        if i % 3 == 0:
            operator.kill()
            operator.start()
    for i, name in enumerate(names):
        status = phase(kube, name, "Succeeded" if i % 2 else "Failed", seconds=90)
        assert status["restarts"] == (0 if i % 2 else 1)
        assert status["attempt"] == (1 if i % 2 else 2)
    kube.create(job("deadline", runPolicy={"activeDeadlineSeconds": 4}))
    phase(kube, "deadline", "Running")
    operator.kill()
    operator.start()
    status = phase(kube, "deadline", "Failed")
    took = datetime.fromisoformat(status["completionTime"]) - datetime.fromisoformat(status["startTime"])
    assert 4 <= took.total_seconds() < 30, "although the operator may not have been running at that time"


def test_operator_on_sigterm_exits_within_its_grace_period(kube: Kube, operator: Operator) -> None:
    kube.create(job("before", 0, "1s"))
    phase(kube, "before", "Succeeded")
    assert operator.stop() == 0
    operator.start()
    kube.create(job("after", 0, "1s"))
    phase(kube, "after", "Succeeded")
