"""Training jobs on a real cluster: two pods on two nodes, real training, real failures."""

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
from support.examples import EXAMPLE, Pace, documents, finished, training
from support.kube import Kube, devcluster
from support.release import Release

from yolojob.api.status import YoloTrainingJobStatus
from yolojob.api.time_parts import TimePart

# Prometheus scrapes from the first test on: test_dashboards.py needs the data.
pytestmark = [pytest.mark.usefixtures("operator", "prometheus"), pytest.mark.timeout(1800)]


def metrics(kube: Kube, job: str, worker: int) -> dict[str, Any]:
    """Returns the metric families of a worker by name."""
    path = f"/api/v1/namespaces/{kube.namespace}/pods/{job}-worker-{worker}:9400/proxy/metrics"
    return {f.name: f for f in text_string_to_metric_families(kube.run("get", "--raw", path).stdout)}


@pytest.mark.parametrize("volume", ["digits"], indirect=True)
def test_example_job_trains_on_two_nodes(kube: Kube, volume: str, pace: Pace) -> None:
    """Covers `kubectl apply`, progress in `kubectl get`, metrics, and the status after success."""
    kube.run("apply", "--filename", str(EXAMPLE))
    training(kube, "digits", 2)
    pods = kube.pods("digits")
    assert len({p["spec"]["nodeName"] for p in pods}) == 2
    row = kube.run("get", "ytj", "digits").stdout.splitlines()
    assert row[0].split() == ["NAME", "PHASE", "WORKERS", "RESTARTS", "EPOCH", "SCORE", "IMG/S", "ETA", "COST", "AGE"]
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
    trained = sum(timing["trainingSeconds"].values())
    assert trained > 1
    pace.epoch_seconds = (trained + timing["validationSeconds"]) / status["progress"]["epoch"]
    assert_time_accounted_for(kube, "digits")
    if kube.is_devcluster:
        assert (settings.STATE / "volumes" / "digits" / "weights" / "best.pt").stat().st_size > 100_000
    description = kube.run("describe", "ytj", "digits").stdout
    assert "Succeeded" in description
    assert "the training is complete: pvc://digits/weights/best.pt" in description


@pytest.mark.parametrize("volume", ["deleted"], indirect=True)
def test_job_with_deleted_worker_resumes_from_its_checkpoint(kube: Kube, volume: str) -> None:
    """All workers are replaced; docs promise that they train again within 15 s. The time is printed, not bounded."""
    kube.apply(*documents("deleted", epochs=8))
    before = training(kube, "deleted", 3)
    kube.run("delete", "pod", "deleted-worker-1", "--wait=false")
    start = time.monotonic()

    def resumed() -> dict[str, Any] | None:
        path = f"/api/v1/namespaces/{kube.namespace}/pods/deleted-worker-0:9400/proxy/progress"
        # A request to the old pod's address would otherwise wait for half a minute.
        done = kube.run("get", "--raw", path, "--request-timeout=1s", check=False)
        report = json.loads(done.stdout) if done.returncode == 0 else {}
        return report if report.get("resumedFrom") and report["state"] == "Training" else None

    report = eventually(resumed, "the new workers train", seconds=60)
    took = time.monotonic() - start
    trainer_start = sum(
        report["timing"][part] - before["timing"][part]
        for part in ("rendezvousSeconds", "stagingSeconds", "startupSeconds")
    )
    print(
        f"trains again after {took:.1f} s, of which the trainer's start took {trainer_start:.1f} s: "
        f"{report['resumedFrom']}"
    )
    assert report["progress"]["epoch"] >= before["progress"]["epoch"]
    status = finished(kube, "deleted")
    assert status["phase"] == "Succeeded", json.dumps(status, indent=1)
    assert (status["attempt"], status["restarts"], status["disruptions"]) == (2, 0, 1)
    assert status["progress"]["epoch"] == 8


@pytest.mark.parametrize("volume", ["killed"], indirect=True)
def test_job_with_killed_process_starts_a_new_attempt(kube: Kube, volume: str) -> None:
    """After kill -9 of one rank, the other one ends by itself, and the attempt counts against the limit."""
    kube.apply(*documents("killed", epochs=6))
    training(kube, "killed", 2)
    kill_trainer("killed-worker-1")
    eventually(lambda: kube.status("killed").get("attempt") == 2, "the workers are replaced", seconds=60)
    status = finished(kube, "killed")
    assert status["phase"] == "Succeeded", json.dumps(status, indent=1)
    assert status["restarts"] + status["disruptions"] == 1


def assert_time_accounted_for(kube: Kube, job: str) -> None:
    """Asserts that the parts of `status.timing` add up to the wall-clock time.

    The tolerance is 1 % and one second, to which the API server rounds its times.
    """
    document = kube.get("yolotrainingjob", job)
    status = YoloTrainingJobStatus.model_validate(document["status"])
    assert status.timing is not None
    assert status.completion_time is not None
    created = datetime.fromisoformat(document["metadata"]["creationTimestamp"])
    wall = (status.completion_time - created).total_seconds()
    parts = status.timing.parts
    unaccounted = parts.pop(TimePart.UNACCOUNTED)
    print(f"{job}: wall {wall:.0f} s, parts {sum(parts.values()):.2f} s, unaccounted {unaccounted:.2f} s: {parts}")
    assert abs(wall - sum(parts.values())) <= 0.01 * wall + 1


def pod_seconds(pods: list[dict[str, Any]]) -> float:
    """Returns the running time of terminated pods, summed."""
    seconds = 0.0
    for pod in pods:
        terminated = pod["status"]["containerStatuses"][0]["state"]["terminated"]
        start, end = (datetime.fromisoformat(terminated[name]) for name in ("startedAt", "finishedAt"))
        seconds += (end - start).total_seconds()
    return seconds


def assert_charged_for(kube: Kube, job: str, price: float) -> None:
    """Asserts that the cost is price × running time, as recorded by the last attempt's pods."""
    status = kube.status(job)
    last = status["history"][-1]
    seconds = pod_seconds(kube.pods(job))
    assert last["podSeconds"] == pytest.approx(seconds, abs=2)
    for record in status["history"]:
        assert record["cost"] == pytest.approx(record["podSeconds"] * price / 3600)
    assert status["cost"]["soFar"] == pytest.approx(sum(r["cost"] for r in status["history"]))
    assert status["cost"]["currency"] == "USD"


@pytest.mark.parametrize("volume", ["storm"], indirect=True)
def test_elastic_job_survives_the_loss_of_a_node(kube: Kube, volume: str, pace: Pace) -> None:
    """It continues with one worker, and with two after the node has returned; every step is trained exactly once."""
    if not kube.is_devcluster:
        pytest.skip("cuts a node's power, which only the test cluster allows")
    # The node is lost for a minute, and the job grows again a minute after that.
    epochs = pace.epochs(200)
    job, claim = documents("storm", epochs=epochs, patience=epochs)
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
        running = status["history"][-1]["workers"] == workers and status["phase"] == "Running"
        return status if running and status["progress"]["epoch"] > before["progress"]["epoch"] else None

    before = kube.status("storm")
    try:
        status = eventually(lambda: runs_with(1), "it trains with one worker", seconds=400, every=0.5)
    finally:
        devcluster("start-node", str(node))
    assert status["restarts"] == 0, "a lost node does not count as a failure of the job"
    before = status
    eventually(lambda: runs_with(2), "it trains with two workers again", seconds=400, every=0.5)
    status = finished(kube, "storm")
    assert status["phase"] == "Succeeded", json.dumps(status, indent=1)
    sizes = [r["workers"] for r in status["history"]]
    assert sizes[0] == sizes[-1] == 2, sizes
    assert sizes.count(1) == 1, sizes
    assert status["restarts"] == 0
    assert status["timing"]["lostSeconds"] > 0
    assert_time_accounted_for(kube, "storm")
    assert_charged_for(kube, "storm", 3.6)
    steps = trained_steps(settings.STATE / "volumes" / "storm")
    per_epoch = status["progress"]["steps"]
    assert sorted(steps) == [(epoch, step) for epoch in range(epochs) for step in range(per_epoch)]


def trained_steps(folder: Path) -> list[tuple[int, int]]:
    """Returns (epoch, step) of every step whose result is in the weights, from the trainer's trace.

    Steps after an attempt's last checkpoint are not in the weights: the next attempt's trace starts at that checkpoint.
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
    """Kills the trainer of a pod from outside the container: its first process ignores signals from inside."""
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


def test_job_of_fixed_size_leaves_a_lost_node(kube: Kube, operator: Release) -> None:
    """The operator runs on the same node, and first moves itself.

    No kubelet confirms the deletion of the job's pod, so the operator deletes it by force and moves all workers.
    """
    if not kube.is_devcluster:
        pytest.skip("cuts a node's power, which only the test cluster allows")
    job = documents("fixed")[0]
    del job["spec"]["storage"]
    # The pods only sleep: everything that happens comes from Kubernetes and the operator.
    idle = {"name": "trainer", "command": ["sleep", "600"]}
    job["spec"]["workers"]["resources"] = {"requests": {"cpu": "10m"}}
    job["spec"]["workers"]["template"] = {"spec": {"containers": [idle], "terminationGracePeriodSeconds": 5}}
    kube.apply(job)

    def pods_by_name() -> dict[str, dict[str, Any]]:
        return {p["metadata"]["name"]: p for p in kube.pods("fixed")}

    def is_running(attempt: int) -> bool:
        status = kube.status("fixed")
        return (status.get("attempt"), status.get("phase")) == (attempt, "Running")

    eventually(lambda: is_running(1), "it runs", seconds=120, every=0.5)
    first = pods_by_name()
    nodes = {name: pod["spec"]["nodeName"] for name, pod in first.items()}
    assert len(set(nodes.values())) == 2, nodes
    lost = operator.pods()[0]["spec"]["nodeName"]
    remaining = next(node for node in nodes.values() if node != lost)
    node = int(lost.rpartition("-")[2])
    devcluster("kill-node", str(node))
    try:
        eventually(lambda: is_running(2), "it runs on another node", seconds=500, every=0.5)
        status, second = kube.status("fixed"), pods_by_name()
    finally:
        devcluster("start-node", str(node))
        kube.run("delete", "ytj", "fixed", "--wait=false")
    assert {p["spec"]["nodeName"] for p in second.values()} == {remaining}
    assert not {p["metadata"]["uid"] for p in first.values()} & {p["metadata"]["uid"] for p in second.values()}
    assert (status["restarts"], status["disruptions"]) == (0, 1), status
    assert status["history"][0]["workers"] == status["history"][1]["workers"] == 2


def test_job_with_unknown_model_fails_without_restart(kube: Kube) -> None:
    """The only attempt ends with exit code 2, and the condition has the trainer's message."""
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
    eventually(lambda: not kube.pods("unknown-model"), "the garbage collector deletes the pods", seconds=60)
    assert not kube.get("service", "unknown-model")
