"""The life of jobs, by the real operator and a real API server, with pods that end as an annotation says."""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from support import eventually, minimal
from support.jobs import attempts, job, phase, suspend
from support.kube import Kube
from support.operator_process import Operator

pytestmark = pytest.mark.usefixtures("operator")


def test_a_job_runs_and_succeeds(kube: Kube) -> None:
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
    assert reasons == ["Succeeded"], "one line for what went well"


def test_failures_use_the_limit_up(kube: Kube) -> None:
    kube.create(job("bad", 1, runPolicy={"backoffLimit": 1}))
    status = phase(kube, "bad", "Failed")
    assert (status["attempt"], status["restarts"], status["disruptions"]) == (2, 1, 0)
    failed = kube.condition("bad", "Failed")
    assert failed["reason"] == "BackoffLimitExceeded"
    assert "exited with code 1" in failed["message"]


def test_the_wait_between_attempts_grows(kube: Kube) -> None:
    """The first restart is at once, the second after 10 s, the third after 20 s."""
    kube.create(job("patient", 1, runPolicy={"backoffLimit": 3}))
    made: dict[str, datetime] = {}

    def ended() -> bool:
        for pod in kube.pods("patient"):
            attempt = pod["metadata"]["labels"]["yolojob.dev/attempt"]
            made.setdefault(attempt, datetime.fromisoformat(pod["metadata"]["creationTimestamp"]))
        return kube.status("patient").get("phase") == "Failed"

    eventually(ended, "it has failed", seconds=90)
    times = [made[attempt] for attempt in sorted(made)]
    assert len(times) == 4, "each attempt was seen"
    waits = [(later - earlier).total_seconds() for earlier, later in itertools.pairwise(times)]
    for wait, wanted in zip(waits, (1, 11, 21), strict=True):  # each lives for a second
        assert wanted - 1 <= wait <= wanted + 4, waits  # creation times are whole seconds


def test_bad_input_is_not_tried_again(kube: Kube) -> None:
    failure = {"rank": 0, "reason": "DatasetNotFound", "message": "there is no folder", "exitCode": 2}
    kube.create(job("wrong", 2, message=json.dumps({"state": "Failed", "failure": failure})))
    status = phase(kube, "wrong", "Failed")
    assert (status["attempt"], status["restarts"]) == (1, 0)
    condition = kube.condition("wrong", "Failed")
    assert condition["reason"] == "DatasetNotFound"
    assert "(rank 0): there is no folder" in condition["message"]


def test_a_deleted_pod_replaces_the_gang(kube: Kube) -> None:
    kube.create(job("gone"))
    phase(kube, "gone", "Running")
    before = {p["metadata"]["uid"] for p in kube.pods("gone")}
    kube.run("delete", "pod", "gone-worker-1", "--wait=false")
    eventually(lambda: attempts(kube, "gone") == {"2"} and len(kube.pods("gone")) == 2, "a new gang")
    status = phase(kube, "gone", "Running")
    assert (status["attempt"], status["restarts"], status["disruptions"]) == (2, 0, 1)
    assert not before & {p["metadata"]["uid"] for p in kube.pods("gone")}


def test_suspend_and_resume(kube: Kube) -> None:
    kube.create(job("sleepy"))
    phase(kube, "sleepy", "Running")
    for on, wanted, pods in ((True, "Suspended", 0), (False, "Running", 2)):
        suspend(kube, "sleepy", on)
        phase(kube, "sleepy", wanted)
        eventually(lambda pods=pods: len(kube.pods("sleepy")) == pods, f"{pods} pods")  # type: ignore[misc]
    status = kube.status("sleepy")
    assert (status["attempt"], status["restarts"], status["disruptions"]) == (2, 0, 0)


def test_suspended_before_it_runs(kube: Kube) -> None:
    """While it has no place, and between two attempts."""
    lost = job("homeless")
    lost["spec"]["workers"]["template"]["spec"]["nodeSelector"] = {"nowhere": "at-all"}
    kube.create(lost)
    eventually(lambda: kube.condition("homeless", "Scheduled").get("reason") == "Unschedulable", "it has no place")
    kube.create(job("clumsy", 1))
    eventually(lambda: kube.status("clumsy").get("nextAttemptTime"), "it waits for its third attempt")
    for name in ("homeless", "clumsy"):
        suspend(kube, name, True)
        status = phase(kube, name, "Suspended")
        eventually(lambda n=name: not kube.pods(n), "its pods are gone")  # type: ignore[misc]
        assert "nextAttemptTime" not in status
        assert kube.condition(name, "Scheduled")["status"] == "False"
    assert kube.status("clumsy")["restarts"] == 2


def test_conditions_and_events_tell_the_story_once(kube: Kube) -> None:
    """An attempt that fails, a suspension, a resumption, and the end."""
    kube.create(job("story", 1, "3s", runPolicy={"backoffLimit": 1}))
    phase(kube, "story", "Running")
    eventually(lambda: kube.status("story").get("attempt") == 2, "it is tried again")
    phase(kube, "story", "Running")
    before = {c["type"]: c for c in kube.status("story")["conditions"]}
    suspend(kube, "story", True)
    phase(kube, "story", "Suspended")
    suspend(kube, "story", False)
    phase(kube, "story", "Running")
    phase(kube, "story", "Failed")
    found = kube.get("ytj", "story")
    now = datetime.now(UTC)
    created = datetime.fromisoformat(found["metadata"]["creationTimestamp"])
    for condition in found["status"]["conditions"]:
        assert condition["observedGeneration"] == found["metadata"]["generation"] == 3, condition
        assert created <= datetime.fromisoformat(condition["lastTransitionTime"]) <= now + timedelta(seconds=1)
        assert condition["reason"]
        assert condition["message"]
    after = {c["type"]: c for c in found["status"]["conditions"]}
    assert after["Accepted"]["lastTransitionTime"] == before["Accepted"]["lastTransitionTime"], "it has not changed"
    assert after["Running"]["lastTransitionTime"] > before["Running"]["lastTransitionTime"]
    told = kube.get("events", "--field-selector=involvedObject.name=story")["items"]
    counts = Counter(e["reason"] for e in told)
    assert counts == {"Restarting": 1, "Running": 2, "Suspended": 1, "Resumed": 1, "Failed": 1}, counts
    assert all(e["count"] == 1 for e in told)


def test_deadline_and_ttl_fire_on_time_though_nothing_happens(kube: Kube) -> None:
    kube.create(job("late", runPolicy={"activeDeadlineSeconds": 3, "ttlSecondsAfterFinished": 2}))
    status = phase(kube, "late", "Failed")
    assert kube.condition("late", "Failed")["reason"] == "DeadlineExceeded"
    took = datetime.fromisoformat(status["completionTime"]) - datetime.fromisoformat(status["startTime"])
    assert 3 <= took.total_seconds() <= 4
    began = time.monotonic()
    eventually(lambda: not kube.get("yolotrainingjob", "late"), "it is deleted")
    assert time.monotonic() - began <= 3.5


def test_unschedulable_is_said_in_the_schedulers_words(kube: Kube) -> None:
    document = job("huge", runPolicy={"preRunningDeadlineSeconds": 4})
    document["spec"]["workers"]["resources"] = {"requests": {"cpu": "1000"}}
    kube.create(document)
    eventually(lambda: kube.condition("huge", "Scheduled").get("reason") == "Unschedulable", "the reason")
    assert "Insufficient cpu" in kube.condition("huge", "Scheduled")["message"]
    assert kube.status("huge")["phase"] == "Queued"
    phase(kube, "huge", "Failed")
    failed = kube.condition("huge", "Failed")
    assert failed["reason"] == "Unschedulable"
    assert "Insufficient cpu" in failed["message"]
    eventually(lambda: not kube.pods("huge"), "it frees what it held")


def test_a_gpu_job_lands_on_gpu_nodes(kube: Kube) -> None:
    document = minimal("gpus", workers={"replicas": 2, "gpu": {"count": 8, "types": ["A100", "H100"]}})
    kube.create(document)
    phase(kube, "gpus", "Running")
    assert {p["spec"]["nodeName"][:3] for p in kube.pods("gpus")} == {"gpu"}
    kube.create(minimal("none", workers={"gpu": {"types": ["T4"]}}))
    eventually(lambda: kube.condition("none", "Scheduled").get("reason") == "Unschedulable", "there is no T4")


def test_a_foreign_pod_is_left_alone(kube: Kube) -> None:
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
    eventually(lambda: kube.condition("taken", "Scheduled").get("reason") == "NameConflict", "the conflict is said")
    assert "taken-worker-1" in kube.condition("taken", "Scheduled")["message"]
    assert kube.get("pod", "taken-worker-1")["metadata"]["uid"] == uid
    kube.run("delete", "pod", "taken-worker-1")
    phase(kube, "taken", "Running", seconds=60)


def test_the_operator_may_be_killed_at_any_moment(kube: Kube, operator: Operator) -> None:
    """Nothing is made twice, nothing is lost, deadlines hold."""
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
    assert took.total_seconds() <= 8, "also when the operator was away at that moment"


def test_it_ends_quickly(kube: Kube, operator: Operator) -> None:
    assert operator.stop() < 10
    operator.start()
