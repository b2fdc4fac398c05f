"""The main job on a real cluster: two pods on two nodes, real training, real trouble."""

from __future__ import annotations

import json
import subprocess
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from devcluster import settings
from prometheus_client.parser import text_string_to_metric_families
from support import eventually
from support.examples import EXAMPLE, documents, finished, training
from support.kube import Kube, devcluster

from yolojob.api.status import YoloTrainingJobStatus
from yolojob.api.time_parts import TimePart

# Prometheus looks on from the beginning, for test_dashboards.
pytestmark = [pytest.mark.usefixtures("operator", "prometheus"), pytest.mark.timeout(1200)]


def metrics(kube: Kube, job: str, worker: int) -> dict[str, Any]:
    path = f"/api/v1/namespaces/{kube.namespace}/pods/{job}-worker-{worker}:9400/proxy/metrics"
    return {f.name: f for f in text_string_to_metric_families(kube.run("get", "--raw", path).stdout)}


@pytest.mark.parametrize("volume", ["digits"], indirect=True)
def test_the_example_trains_on_two_nodes(kube: Kube, volume: str) -> None:
    """`kubectl apply`, progress in `kubectl get`, metrics in Prometheus, Succeeded with all figures."""
    kube.run("apply", "--filename", str(EXAMPLE))
    training(kube, "digits", 2)
    pods = kube.pods("digits")
    assert len({p["spec"]["nodeName"] for p in pods}) == 2
    row = kube.run("get", "ytj", "digits").stdout.splitlines()
    assert row[0].split() == ["NAME", "PHASE", "WORKERS", "RESTARTS", "EPOCH", "MAP50", "IMG/S", "ETA", "COST", "AGE"]
    assert row[1].split()[:3] == ["digits", "Running", "2"]

    families = metrics(kube, "digits", 1)
    assert families["yolojob_trainer_images"].samples[0].value > 0
    phases = {s.labels["phase"] for s in families["yolojob_trainer_phase_seconds"].samples}
    assert {"data_wait", "forward", "backward", "all_reduce", "optimizer"} <= phases

    status = finished(kube, "digits")
    assert status["phase"] == "Succeeded", json.dumps(status, indent=1)
    assert (status["attempt"], status["restarts"], status["disruptions"]) == (1, 0, 0)
    assert status["result"]["weights"] == "pvc://digits/weights/best.pt"
    assert status["result"]["map50"] >= 0.80
    assert status["progress"]["epoch"] == 20
    timing = status["timing"]
    assert {"queuedSeconds", "imagePullSeconds", "stagingSeconds", "startupSeconds", "validationSeconds"} <= set(timing)
    assert sum(timing["trainingSeconds"].values()) > 1
    accounted_for(kube, "digits")
    if kube.is_devcluster:
        assert (settings.STATE / "volumes" / "digits" / "weights" / "best.pt").stat().st_size > 100_000
    story = kube.run("describe", "ytj", "digits").stdout
    assert "attempt 1 runs" in story or "Succeeded" in story
    assert "the training is complete: pvc://digits/weights/best.pt" in story


@pytest.mark.parametrize("volume", ["deleted"], indirect=True)
def test_a_deleted_worker_is_replaced_and_the_training_goes_on(kube: Kube, volume: str) -> None:
    """The whole gang is replaced, and trains again from the checkpoint, within 15 s."""
    kube.apply(*documents("deleted"))
    before = training(kube, "deleted", 3)
    kube.run("delete", "pod", "deleted-worker-1", "--wait=false")
    began = time.monotonic()

    def goes_on() -> dict[str, Any] | None:
        path = f"/api/v1/namespaces/{kube.namespace}/pods/deleted-worker-0:9400/proxy/progress"
        # A request that meets the old pod's address would wait for an answer for half a minute.
        done = kube.run("get", "--raw", path, "--request-timeout=1s", check=False)
        report = json.loads(done.stdout) if done.returncode == 0 else {}
        return report if report.get("resumedFrom") and report["state"] == "Training" else None

    report = eventually(goes_on, "the new gang trains", seconds=60)
    took = time.monotonic() - began
    assert report is not None
    own = sum(
        report["timing"][part] - before["timing"][part]
        for part in ("rendezvousSeconds", "stagingSeconds", "startupSeconds")
    )
    print(
        f"a deleted worker: trains again after {took:.1f} s, its own start is {own:.1f} s of it: {report['resumedFrom']}"
    )
    # 15 s is the promise; a machine that is busy with other things gets twice that, but not for the operator's part.
    assert took <= 30
    assert took - own <= 8
    assert report["progress"]["epoch"] >= before["progress"]["epoch"]
    status = finished(kube, "deleted")
    assert status["phase"] == "Succeeded", json.dumps(status, indent=1)
    assert (status["attempt"], status["restarts"], status["disruptions"]) == (2, 0, 1)
    assert status["result"]["map50"] >= 0.75


@pytest.mark.parametrize("volume", ["killed"], indirect=True)
def test_a_killed_process_counts_against_the_limit(kube: Kube, volume: str) -> None:
    """kill -9 of one rank: the survivor notices by itself, and the attempt counts as a failure."""
    kube.apply(*documents("killed"))
    training(kube, "killed", 2)
    kill_trainer("killed-worker-1")
    eventually(lambda: kube.status("killed").get("attempt") == 2, "the gang is replaced", seconds=60)
    status = finished(kube, "killed")
    assert status["phase"] == "Succeeded", json.dumps(status, indent=1)
    assert status["restarts"] + status["disruptions"] == 1


def accounted_for(kube: Kube, job: str) -> None:
    """The named parts are the wall clock within 1 % (and a second, to which the API server rounds)."""
    found = kube.get("yolotrainingjob", job)
    status = YoloTrainingJobStatus.model_validate(found["status"])
    assert status.timing is not None
    assert status.completion_time is not None
    created = datetime.fromisoformat(found["metadata"]["creationTimestamp"])
    wall = (status.completion_time - created).total_seconds()
    parts = status.timing.parts
    rest = parts.pop(TimePart.UNACCOUNTED)
    print(f"{job}: wall {wall:.0f} s, named parts {sum(parts.values()):.2f} s, rest {rest:.2f} s: {parts}")
    assert abs(wall - sum(parts.values())) <= 0.01 * wall + 1


def charged_for(kube: Kube, job: str, price: float) -> None:
    """Price × running time, by what the last attempt's pods say themselves."""
    status = kube.status(job)
    last = status["history"][-1]
    seconds = 0.0
    for pod in kube.pods(job):
        ended = pod["status"]["containerStatuses"][0]["state"]["terminated"]
        seconds += (
            datetime.fromisoformat(ended["finishedAt"]) - datetime.fromisoformat(ended["startedAt"])
        ).total_seconds()
    assert last["podSeconds"] == pytest.approx(seconds, abs=2)
    for record in status["history"]:
        assert record["cost"] == pytest.approx(record["podSeconds"] * price / 3600)
    assert status["cost"]["soFar"] == pytest.approx(sum(r["cost"] for r in status["history"]))
    assert status["cost"]["currency"] == "USD"


@pytest.mark.parametrize("volume", ["storm"], indirect=True)
def test_an_elastic_job_outlives_its_node(kube: Kube, volume: str) -> None:
    """Power cut: it goes on with one worker; the node comes back: with two. No sample is lost, none is learnt twice."""
    if not kube.is_devcluster:
        pytest.skip("pulls a node's plug, which only the test cluster has")
    job, claim = documents("storm", epochs=70, patience=100)
    apart = {
        "topologyKey": "kubernetes.io/hostname",
        "labelSelector": {"matchLabels": {"yolojob.dev/job-name": "storm"}},
    }
    affinity = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}}
    job["spec"]["workers"].setdefault("template", {}).setdefault("spec", {})["affinity"] = affinity
    job["spec"] |= {"elastic": {"minReplicas": 1, "maxReplicas": 2}, "pricing": {"perWorkerHour": 3.6}}
    kube.apply(job, claim)
    training(kube, "storm", 2)
    lost = next(p["spec"]["nodeName"] for p in kube.pods("storm") if p["metadata"]["name"] == "storm-worker-1")
    node = int(lost.rpartition("-")[2])
    devcluster("kill-node", str(node))

    def runs_with(workers: int) -> dict[str, Any] | None:
        status = kube.status("storm")
        assert status["phase"] not in ("Failed", "Succeeded"), json.dumps(status, indent=1)
        right = status["history"][-1]["workers"] == workers and status["phase"] == "Running"
        return status if right and status["progress"]["epoch"] > before["progress"]["epoch"] else None

    before = kube.status("storm")
    try:
        status = eventually(lambda: runs_with(1), "it trains with one worker", seconds=180, every=0.5)
    finally:
        devcluster("start-node", str(node))
    assert status is not None
    assert status["restarts"] == 0, "a lost node is no failure of the job"
    before = status
    status = eventually(lambda: runs_with(2), "it trains with two again", seconds=180, every=0.5)
    assert status is not None
    status = finished(kube, "storm", seconds=400)
    assert status["phase"] == "Succeeded", json.dumps(status, indent=1)
    sizes = [r["workers"] for r in status["history"]]
    assert sizes[0] == sizes[-1] == 2, sizes
    assert sizes.count(1) == 1, sizes
    assert status["restarts"] == 0
    assert status["timing"]["lostSeconds"] > 0
    accounted_for(kube, "storm")
    charged_for(kube, "storm", 3.6)
    steps = record(settings.STATE / "volumes" / "storm")
    per_epoch = status["progress"]["steps"]
    assert sorted(steps) == [(epoch, step) for epoch in range(70) for step in range(per_epoch)]


def record(folder: Path) -> list[tuple[int, int]]:
    """The trainer's own record: (epoch, step) of every step whose outcome is in the weights, and how often it is there.

    What an attempt did after its last checkpoint is not in the weights: a later attempt's lines begin where it took up.
    """
    lines: dict[int, list[tuple[int, int]]] = {}
    for file in (folder / "trace" / "rank-0").glob("epoch-*.attempt-*.jsonl"):
        attempt = int(file.name.split(".attempt-")[1].removesuffix(".jsonl"))
        for text in file.read_text().splitlines():
            line = json.loads(text)
            if line.get("images"):
                lines.setdefault(attempt, []).append((line["epoch"], line["step"]))
    kept: list[tuple[int, int]] = []
    for attempt in sorted(lines):
        kept = [step for step in kept if step < min(lines[attempt])] + lines[attempt]
    return kept


def kill_trainer(pod: str) -> None:
    """From outside: a container's first process is deaf to signals from within."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = (entry / "environ").read_bytes()
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if f"HOSTNAME={pod}".encode() in environment and b"yolojob_trainer" in command:
            subprocess.run(["kill", "-9", entry.name], check=True)
            return
    raise AssertionError(f"no process of {pod} found")


def test_a_gang_of_fixed_size_leaves_a_dead_node(kube: Kube) -> None:
    """Power cut: no kubelet lets go of the pod, so it is deleted from the API, and the whole gang finds places elsewhere."""
    if not kube.is_devcluster:
        pytest.skip("pulls a node's plug, which only the test cluster has")
    job = documents("fixed")[0]
    del job["spec"]["storage"]
    # It trains nothing and speaks to nobody: what happens is what Kubernetes and the operator see by themselves.
    idle = {"name": "trainer", "command": ["sleep", "600"]}
    job["spec"]["workers"]["resources"] = {"requests": {"cpu": "10m"}}
    job["spec"]["workers"]["template"] = {"spec": {"containers": [idle], "terminationGracePeriodSeconds": 5}}
    kube.apply(job)

    def gang() -> dict[str, dict[str, Any]]:
        return {p["metadata"]["name"]: p for p in kube.pods("fixed")}

    def runs(attempt: int) -> bool:
        status = kube.status("fixed")
        return (status.get("attempt"), status.get("phase")) == (attempt, "Running")

    eventually(lambda: runs(1), "it runs", seconds=120, every=0.5)
    first = gang()
    nodes = {name: pod["spec"]["nodeName"] for name, pod in first.items()}
    assert len(set(nodes.values())) == 2, nodes
    lost = nodes["fixed-worker-1"]
    node = int(lost.rpartition("-")[2])
    devcluster("kill-node", str(node))
    try:
        eventually(lambda: runs(2), "it runs elsewhere", seconds=240, every=0.5)
        status, second = kube.status("fixed"), gang()
    finally:
        devcluster("start-node", str(node))
        kube.run("delete", "ytj", "fixed", "--wait=false")
    assert {p["spec"]["nodeName"] for p in second.values()} == {nodes["fixed-worker-0"]}
    assert not {p["metadata"]["uid"] for p in first.values()} & {p["metadata"]["uid"] for p in second.values()}
    assert (status["restarts"], status["disruptions"]) == (0, 1), status
    assert status["history"][0]["workers"] == status["history"][1]["workers"] == 2


def test_bad_input_fails_at_once_and_says_why(kube: Kube) -> None:
    """A model that does not exist: one attempt, exit code 2, the rank's own words in the condition."""
    job = documents("unknown-model")[0]
    job["spec"]["model"] = {"name": "yolo99n.yaml"}
    del job["spec"]["storage"]
    kube.apply(job)
    status = finished(kube, "unknown-model", seconds=120)
    assert status["phase"] == "Failed"
    assert (status["attempt"], status["restarts"]) == (1, 0)
    failed = kube.condition("unknown-model", "Failed")
    assert failed["reason"] == "ModelNotFound"
    assert "yolo99n.yaml" in failed["message"]
    kube.run("delete", "yolotrainingjob", "unknown-model")
    eventually(lambda: not kube.pods("unknown-model"), "owner references clean up", seconds=60)
    assert not kube.get("service", "unknown-model")
