"""Resilience: the operator is killed, the API server is slow, refuses requests or is down, other clients interfere."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import ROOT, eventually
from support.api_faults import Proxy, proxy
from support.jobs import attempts, job, let_pass, phase
from support.kube import Kube
from support.operator_process import Operator

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="class")
def proxied(kube: Kube, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Operator, Proxy]]:
    """An operator that reaches the API server through a proxy."""
    folder = tmp_path_factory.mktemp("faults")
    with proxy(kube.kubeconfig, folder) as (faulty, kubeconfig):
        operator = Operator(kube, folder / "log", kubeconfig=kubeconfig)
        yield operator, faulty
        operator.stop()
        output = operator.log.read_text()
        assert "could not be reconciled" not in output, output


@pytest.fixture(autouse=True)
def healthy(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test begins and ends with a healthy API server."""
    if "proxied" not in request.fixturenames:
        yield
        return
    operator, faulty = request.getfixturevalue("proxied")
    eventually(lambda: operator.leads, "the operator leads")
    yield
    faulty.faults = type(faulty.faults)()


def statuses(kube: Kube, names: list[str]) -> dict[str, dict[str, Any]]:
    """The statuses of these jobs by name."""
    items = kube.get("yolotrainingjobs")["items"]
    return {i["metadata"]["name"]: i.get("status", {}) for i in items if i["metadata"]["name"] in names}


def all_finished(kube: Kube, names: list[str], seconds: float) -> dict[str, dict[str, Any]]:
    """Wait until these jobs have finished; returns their statuses."""

    def look() -> dict[str, dict[str, Any]]:
        current = statuses(kube, names)
        return current if all(s.get("phase") in ("Succeeded", "Failed") for s in current.values()) else {}

    return eventually(look, f"{len(names)} jobs finish", seconds=seconds, every=1.0)


class TestFaultyApiServer:
    def test_random_conflicts_throttling_and_errors_change_no_outcome(
        self, kube: Kube, proxied: tuple[Operator, Proxy]
    ) -> None:
        """A third of all writing requests is refused at random."""
        _, faulty = proxied
        faulty.faults.refusals, faulty.faults.share = (409, 429, 500), 0.33
        names = [f"refused-{i}" for i in range(8)]
        for i, name in enumerate(names):
            kube.create(job(name, i % 2, "2s", runPolicy={"backoffLimit": 1}))
        finished = all_finished(kube, names, 120)
        assert all(faulty.faults.counts[code] for code in ("409", "429", "500")), faulty.faults.counts
        for i, name in enumerate(names):
            expected = ("Failed", 2, 1) if i % 2 else ("Succeeded", 1, 0)
            assert (finished[name]["phase"], finished[name]["attempt"], finished[name]["restarts"]) == expected, (
                finished[name]
            )

    def test_slow_api_server_changes_no_outcome(self, kube: Kube, proxied: tuple[Operator, Proxy]) -> None:
        _, faulty = proxied
        faulty.faults.delay = 1.0
        kube.create(job("slow", 0, "3s"))
        assert phase(kube, "slow", "Succeeded", seconds=60)["attempt"] == 1

    def test_expired_watches_are_replaced_by_lists(self, kube: Kube, proxied: tuple[Operator, Proxy]) -> None:
        """Every watch gets a 410 for a while, so changes in this time are seen only by listing again."""
        _, faulty = proxied
        faulty.faults.broken = 410
        faulty.cut()
        kube.create(job("expired", 0, "2s"))
        eventually(lambda: faulty.faults.counts["watch 410"] >= 3, "watches were refused")
        faulty.faults.broken = 0
        assert phase(kube, "expired", "Succeeded", seconds=60)["attempt"] == 1

    @pytest.mark.parametrize("fault", ["watch", "login"])
    def test_error_that_ends_kopf_does_not_end_the_process(
        self, kube: Kube, proxied: tuple[Operator, Proxy], fault: str
    ) -> None:
        """A watch error other than 410, and a temporary 401: the same process continues."""
        operator, faulty = proxied
        name = f"beyond-{fault}"
        kube.create(job(name, 0, "6s"))
        phase(kube, name, "Running")
        process = operator.pid
        if fault == "watch":
            faulty.faults.broken = 500
            faulty.cut()
            eventually(lambda: faulty.faults.counts["watch 500"] >= 2, "watches got the error")
        else:
            faulty.faults.refusals, faulty.faults.share, faulty.faults.reads = (401,), 1.0, True
            faulty.cut()
            eventually(lambda: faulty.faults.counts["401"] >= 4, "requests were unauthorized")
        faulty.faults.broken, faulty.faults.refusals, faulty.faults.reads = 0, (), False
        status = phase(kube, name, "Succeeded", seconds=60)
        assert (status["attempt"], status["restarts"], status["disruptions"]) == (1, 0, 0)
        assert operator.alive
        assert operator.pid == process
        eventually(lambda: operator.leads, "the operator leads again", seconds=30)

    @pytest.mark.exclusive
    def test_unavailable_aggregated_api_does_not_prevent_the_start(
        self, kube: Kube, proxied: tuple[Operator, Proxy]
    ) -> None:
        """A metrics server may be down, for example. Discovery of the API then fails for all clients."""
        operator, _ = proxied
        group = "metrics.away.example.com"
        service = {"name": "nobody", "namespace": kube.namespace}
        spec = {
            "group": group,
            "version": "v1",
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
            "service": service,
        }
        api = {"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": f"v1.{group}"}}
        kube.apply({**api, "spec": {**spec, "insecureSkipTLSVerify": True}})
        try:
            refused = kube.run("get", "--raw", f"/apis/{group}/v1", check=False)
            assert "unable to handle the request" in refused.stderr, refused.stderr
            operator.kill()
            operator.start()
            kube.create(job("undisturbed", 0))
            phase(kube, "undisturbed", "Succeeded", seconds=40)
        finally:
            kube.run("delete", "apiservice", f"v1.{group}")

    def test_objects_deleted_while_watches_were_expired_are_noticed(
        self, kube: Kube, proxied: tuple[Operator, Proxy]
    ) -> None:
        """A pod and a job are deleted while no watch works. A later list does not mention deleted objects."""
        operator, faulty = proxied
        kube.create(job("bereft"))
        kube.create(job("forgotten"))
        for name in ("bereft", "forgotten"):
            phase(kube, name, "Running")
        faulty.faults.broken = 410
        faulty.cut()
        eventually(lambda: faulty.faults.counts["watch 410"] >= 3, "watches were refused")
        kube.run("delete", "pod", "bereft-worker-1", "--grace-period=0", "--force")
        kube.run("delete", "yolotrainingjob", "forgotten")
        eventually(lambda: not kube.pods("forgotten"), "its pods are gone")
        faulty.faults.broken = 0
        eventually(lambda: kube.status("bereft").get("attempt") == 2, "the gang is replaced", seconds=90)
        assert phase(kube, "bereft", "Running")["disruptions"] == 1
        eventually(lambda: "forgotten" not in operator.ask("/metrics")[1], "its series are gone")

    def test_silent_watch_is_measured_and_timers_continue(self, kube: Kube, proxied: tuple[Operator, Proxy]) -> None:
        """Requests succeed and watches are open, but deliver no events. Deadlines are kept by timers, and the lag is
        measured.
        """
        operator, faulty = proxied
        kube.create(job("unheard-of", runPolicy={"activeDeadlineSeconds": 6}))
        phase(kube, "unheard-of", "Running")
        eventually(lambda: operator.value("yolojob_watch_lag_seconds") == 0, "the watches have shown all changes")
        faulty.faults.deaf = True
        assert phase(kube, "unheard-of", "Failed")["completionTime"]
        eventually(lambda: operator.value("yolojob_watch_lag_seconds") > 2, "the lag grows")
        assert operator.ask("/healthz") == (200, "ok\n"), "a lag of a few seconds is not unhealthy"
        faulty.cut()
        faulty.faults.deaf = False
        eventually(lambda: operator.value("yolojob_watch_lag_seconds") == 0, "the new watches show all changes")

    def test_api_server_down_for_a_minute_changes_no_outcome(self, kube: Kube, proxied: tuple[Operator, Proxy]) -> None:
        operator, faulty = proxied
        kube.create(job("through", 0, "20s"))
        kube.create(job("late", runPolicy={"activeDeadlineSeconds": 10}))
        phase(kube, "through", "Running")
        phase(kube, "late", "Running")
        faulty.faults.away = True
        faulty.cut()
        kube.create(job("meanwhile", 0, "1s"))
        let_pass(60)
        assert operator.alive
        assert not operator.leads, "it could not renew its lease"
        faulty.faults.away = False
        for name, expected in (("through", "Succeeded"), ("late", "Failed"), ("meanwhile", "Succeeded")):
            status = phase(kube, name, expected, seconds=40)
            assert (status["attempt"], status["restarts"], status["disruptions"]) == (1, 0, 0)

    def test_api_server_that_returns_errors_for_a_minute_changes_no_outcome(
        self, kube: Kube, proxied: tuple[Operator, Proxy]
    ) -> None:
        """Lists, watches and the lease are refused, too, for longer than kopf's own retries last."""
        operator, faulty = proxied
        kube.create(job("refused", 0, "20s"))
        phase(kube, "refused", "Running")
        faulty.faults.refusals, faulty.faults.share, faulty.faults.reads = (500,), 1.0, True
        faulty.cut()
        kube.create(job("unheard", 0, "1s"))
        let_pass(70)
        assert operator.alive
        assert not operator.leads
        faulty.faults.refusals, faulty.faults.reads = (), False
        for name in ("refused", "unheard"):
            status = phase(kube, name, "Succeeded", seconds=60)
            assert (status["attempt"], status["restarts"], status["disruptions"]) == (1, 0, 0)


class TestOtherClients:
    def test_two_operators_have_one_leader_at_a_time(self, kube: Kube, tmp_path: Path) -> None:
        first = Operator(kube, tmp_path / "first")
        eventually(lambda: first.leads, "the first operator leads")
        second = Operator(kube, tmp_path / "second")
        try:
            eventually(lambda: "this one waits" in second.log.read_text(), "the second operator waits")
            kube.create(job("mine", 0, "1s"))
            phase(kube, "mine", "Succeeded")
            assert second.value("yolojob_leader") == 0
            assert second.value("yolojob_api_requests_total", resource="pods") == 0
            first.stop()
            eventually(lambda: second.leads, "the second takes over, as the first released the lease", seconds=10)
            kube.create(job("yours", 0, "1s"))
            phase(kube, "yours", "Succeeded")
        finally:
            for operator in (first, second):
                if operator.alive:
                    operator.stop()

    def test_lease_of_a_dead_process_is_taken_immediately_and_that_of_another_host_after_its_expiry(
        self, kube: Kube, tmp_path: Path
    ) -> None:
        operator = Operator(kube, tmp_path / "log")
        eventually(lambda: operator.leads, "the operator leads")
        operator.kill()
        operator.start()
        eventually(lambda: operator.leads, "the lease of the dead process is free", seconds=14)
        operator.stop()
        taken = {"spec": {"holderIdentity": "somebody", "leaseDurationSeconds": 15}}
        kube.run("patch", "lease", "yolojob-operator", "--type=merge", "--patch", json.dumps(taken))
        operator.start()
        began = time.monotonic()
        eventually(lambda: operator.leads, "a lease that is not renewed expires", seconds=60)
        assert time.monotonic() - began > 13, "not before it has expired"
        operator.stop()

    @pytest.mark.exclusive
    def test_invalid_stored_job_is_reported_and_stops_no_other_job(self, kube: Kube, operator: Operator) -> None:
        """It is stored while the CRD has no validation rules."""
        crd = yaml.safe_load((ROOT / "manifests" / "crd.yaml").read_text())
        loose = json.loads(json.dumps(crd))
        schema = loose["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        schema["properties"]["spec"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        try:
            kube.run("replace", "--filename", "-", input=json.dumps(loose))
            broken = job("broken", train={"epochs": 0})
            eventually(lambda: kube.create(broken, check=False).returncode == 0, "the API server uses the loose schema")
            kube.create(job("hopeless", train={"epochs": "many"}))
        finally:
            kube.run("replace", "--filename", "-", input=json.dumps(crd))
        eventually(lambda: kube.condition("broken", "Accepted").get("status") == "False", "the condition reports it")
        condition = kube.condition("broken", "Accepted")
        assert condition["reason"] == "InvalidSpec"
        assert "spec.train.epochs" in condition["message"]

        def events() -> list[str]:
            listed = kube.get("events", "--field-selector=involvedObject.name=hopeless,reason=InvalidSpec")
            return [e["message"] for e in listed["items"]]

        eventually(events, "the API server rejects its status, so there is an event")
        assert "spec.train.epochs" in events()[0]
        kube.create(job("sound", 0, "1s"))
        phase(kube, "sound", "Succeeded")
        assert kube.pods("broken") == kube.pods("hopeless") == []
        assert len(events()) == 1, "reported once"

    def test_exceeded_quota_is_reported_and_pods_deleted_at_the_deadline(self, kube: Kube, operator: Operator) -> None:
        quota = {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": "tight"},
            "spec": {"hard": {"pods": "1"}},
        }
        kube.create(quota)
        try:
            eventually(
                lambda: kube.get("resourcequota", "tight").get("status", {}).get("hard"), "the quota is in force"
            )
            kube.create(job("crowded", runPolicy={"preRunningDeadlineSeconds": 6}))
            eventually(
                lambda: kube.condition("crowded", "Scheduled").get("reason") == "QuotaExceeded",
                "the condition reports it",
            )
            assert "tight" in kube.condition("crowded", "Scheduled")["message"]
            assert len(kube.pods("crowded")) == 1
            phase(kube, "crowded", "Failed")
            failed = kube.condition("crowded", "Failed")
            assert failed["reason"] == "QuotaExceeded"
            assert "preRunningDeadlineSeconds" in failed["message"]
            eventually(lambda: not kube.pods("crowded"), "its pods are deleted")
        finally:
            kube.run("delete", "resourcequota", "tight")

    @pytest.mark.exclusive("pod-group-crds")
    def test_missing_gang_scheduler_is_reported(self, kube: Kube, operator: Operator) -> None:
        if kube.run("get", "crd", "podgroups.scheduling.x-k8s.io", check=False).returncode == 0:
            kube.run("delete", "crd", "podgroups.scheduling.x-k8s.io")
        kube.create(job("ganged", scheduling={"gang": "coscheduling"}))
        eventually(
            lambda: kube.condition("ganged", "Scheduled").get("reason") == "NoGangScheduler", "the condition reports it"
        )
        assert "scheduling.x-k8s.io" in kube.condition("ganged", "Scheduled")["message"]
        assert kube.pods("ganged") == []

    def test_deleted_job_leaves_no_series(self, kube: Kube, operator: Operator) -> None:
        kube.create(job("counted", 0, "1s", pricing={"perWorkerHour": 1.5}))
        phase(kube, "counted", "Succeeded")
        assert operator.value("yolojob_job_time_seconds", job_name="counted") > 0
        assert operator.value("yolojob_jobs", phase="Succeeded") >= 1
        assert operator.value("yolojob_job_duration_seconds_count", phase="Succeeded") >= 1
        assert operator.value("yolojob_time_to_running_seconds_count") >= 1
        kube.run("delete", "yolotrainingjob", "counted")
        eventually(lambda: "counted" not in operator.ask("/metrics")[1], "its series are gone")


@pytest.fixture
def all_pods(kube: Kube, tmp_path: Path) -> Iterator[Path]:
    """A file with a line for every change of a pod: name, attempt, uid."""
    path = tmp_path / "pods"
    line = r'{.metadata.name} {.metadata.labels.yolojob\.dev/attempt} {.metadata.uid}{"\n"}'
    kubectl = shutil.which("kubectl", path=kube.environment["PATH"]) or "kubectl"
    command = [kubectl, "--namespace", kube.namespace, "get", "pods", "--watch", "--output", f"jsonpath={line}"]
    stopped, watches = threading.Event(), list[subprocess.Popen[bytes]]()

    def follow() -> None:
        with path.open("a") as out:
            while not stopped.is_set():  # the API server ends the watch of a reader that is too slow
                watches.append(subprocess.Popen(command, env=kube.environment, stdout=out))
                watches[-1].wait()

    following = threading.Thread(target=follow)
    following.start()
    yield path
    stopped.set()
    while following.is_alive():
        watches[-1].terminate()
        following.join(0.2)


@pytest.mark.exclusive  # it uses the whole machine
def test_fifty_jobs_with_a_randomly_killed_operator_have_the_right_outcomes(
    kube: Kube, operator: Operator, all_pods: Path
) -> None:
    """No pod is created twice, no job is lost, every restart is counted, and deadlines are kept."""
    chance = random.Random(50)
    names, killed = [f"fifty-{i}" for i in range(50)], 0
    ends = {
        "ok": (0, "Succeeded", 1, 0),
        "bad": (1, "Failed", 2, 1),
        "wrong": (2, "Failed", 1, 0),
        "late": (None, "Failed", 1, 0),
    }
    kinds = {name: chance.choice(list(ends)) for name in names}
    for name in names:
        policy = {"backoffLimit": 1, **({"activeDeadlineSeconds": 20} if kinds[name] == "late" else {})}
        kube.create(job(name, ends[kinds[name]][0], f"{chance.randint(1, 6)}s", runPolicy=policy))
        if chance.random() < 0.2:
            operator.kill()
            operator.start()
            killed += 1
    for _ in range(5):
        let_pass(chance.uniform(0.5, 3.0))
        operator.kill()
        operator.start()
        killed += 1
    assert killed >= 10
    finished = all_finished(kube, names, 150)
    assert len(finished) == 50
    seen: dict[tuple[str, str], set[str]] = {}
    for line in all_pods.read_text().splitlines():
        pod, attempt, uid = line.split()
        seen.setdefault((pod, attempt), set()).add(uid)
    assert len(seen) >= 2 * 50
    assert [pod for pod, uids in seen.items() if len(uids) > 1] == [], "no pod was created twice"
    for name, status in finished.items():
        _, *expected = ends[kinds[name]]
        assert [status["phase"], status["attempt"], status["restarts"]] == expected, (name, kinds[name], status)
        assert attempts(kube, name) <= {str(status["attempt"])}, "no pod of an earlier attempt is left"
        if kinds[name] == "late":
            took = datetime.fromisoformat(status["completionTime"]) - datetime.fromisoformat(status["startTime"])
            assert took.total_seconds() >= 20
