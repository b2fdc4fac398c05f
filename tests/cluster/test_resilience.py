"""What goes wrong around the operator: it is killed, the API server is slow, refuses, or is away, others interfere."""

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
from support.jobs import attempts, job, phase
from support.kube import Kube
from support.operator_process import Operator

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="class")
def through(kube: Kube, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Operator, Proxy]]:
    """An operator that sees the API server through a proxy."""
    folder = tmp_path_factory.mktemp("faults")
    with proxy(kube.kubeconfig, folder) as (faulty, kubeconfig):
        operator = Operator(kube, folder / "log", kubeconfig=kubeconfig)
        yield operator, faulty
        operator.stop()
        words = operator.log.read_text()
        assert "could not be reconciled" not in words, words


@pytest.fixture(autouse=True)
def well(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test begins and ends with an API server that is well."""
    if "through" not in request.fixturenames:
        yield
        return
    operator, faulty = request.getfixturevalue("through")
    eventually(lambda: operator.leads, "it leads")
    yield
    faulty.faults = type(faulty.faults)()


def gangs(kube: Kube, names: list[str]) -> dict[str, dict[str, Any]]:
    items = kube.get("yolotrainingjobs")["items"]
    return {i["metadata"]["name"]: i.get("status", {}) for i in items if i["metadata"]["name"] in names}


def all_finished(kube: Kube, names: list[str], seconds: float) -> dict[str, dict[str, Any]]:
    def look() -> dict[str, dict[str, Any]] | None:
        found = gangs(kube, names)
        return found if all(s.get("phase") in ("Succeeded", "Failed") for s in found.values()) else None

    return eventually(look, f"{len(names)} jobs end", seconds=seconds, every=1.0)  # type: ignore[return-value]


class TestRefusals:
    def test_conflicts_throttling_and_errors(self, kube: Kube, through: tuple[Operator, Proxy]) -> None:
        """A third of all changes is refused, at random."""
        _, faulty = through
        faulty.faults.refusals, faulty.faults.share = (409, 429, 500), 0.33
        names = [f"refused-{i}" for i in range(8)]
        for i, name in enumerate(names):
            kube.create(job(name, i % 2, "2s", runPolicy={"backoffLimit": 1}))
        found = all_finished(kube, names, 120)
        assert all(faulty.faults.counts[code] for code in ("409", "429", "500")), faulty.faults.counts
        for i, name in enumerate(names):
            wanted = ("Failed", 2, 1) if i % 2 else ("Succeeded", 1, 0)
            assert (found[name]["phase"], found[name]["attempt"], found[name]["restarts"]) == wanted, found[name]

    def test_a_slow_api_server(self, kube: Kube, through: tuple[Operator, Proxy]) -> None:
        _, faulty = through
        faulty.faults.delay = 1.0
        kube.create(job("slow", 0, "3s"))
        assert phase(kube, "slow", "Succeeded", seconds=60)["attempt"] == 1

    def test_an_expired_watch(self, kube: Kube, through: tuple[Operator, Proxy]) -> None:
        """Every watch is refused with 410 for a while, so what happens meanwhile is only seen by listing anew."""
        _, faulty = through
        faulty.faults.broken = 410
        faulty.cut()
        kube.create(job("expired", 0, "2s"))
        eventually(lambda: faulty.faults.counts["watch 410"] >= 3, "watches were refused")
        faulty.faults.broken = 0
        assert phase(kube, "expired", "Succeeded", seconds=60)["attempt"] == 1

    @pytest.mark.parametrize("fault", ["watch", "login"])
    def test_what_kopf_would_end_for(self, kube: Kube, through: tuple[Operator, Proxy], fault: str) -> None:
        """An error within a watch that is not 410, and a 401 that passes: the same process goes on."""
        operator, faulty = through
        name = f"beyond-{fault}"
        kube.create(job(name, 0, "6s"))
        phase(kube, name, "Running")
        process = operator.pid
        if fault == "watch":
            faulty.faults.broken = 500
            faulty.cut()
            eventually(lambda: faulty.faults.counts["watch 500"] >= 2, "watches were told of an error")
        else:
            faulty.faults.refusals, faulty.faults.share, faulty.faults.reads = (401,), 1.0, True
            faulty.cut()
            eventually(lambda: faulty.faults.counts["401"] >= 4, "nobody knew us")
        faulty.faults.broken, faulty.faults.refusals, faulty.faults.reads = 0, (), False
        status = phase(kube, name, "Succeeded", seconds=60)
        assert (status["attempt"], status["restarts"], status["disruptions"]) == (1, 0, 0)
        assert operator.alive
        assert operator.pid == process
        eventually(lambda: operator.leads, "it works", seconds=30)

    def test_an_aggregated_api_that_is_away(self, kube: Kube, through: tuple[Operator, Proxy]) -> None:
        """A metrics server that is down is no reason not to begin."""
        operator, _ = through
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

    def test_what_went_while_watches_were_expired(self, kube: Kube, through: tuple[Operator, Proxy]) -> None:
        """A pod and a job are deleted while nobody can watch; a list has no word for what is not there."""
        operator, faulty = through
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
        eventually(lambda: "forgotten" not in operator.ask("/metrics")[1], "it is forgotten")

    def test_a_deaf_watch_is_noticed(self, kube: Kube, through: tuple[Operator, Proxy]) -> None:
        """Requests work, watches are open, and nothing comes: what was created before goes on by timers and is measured."""
        operator, faulty = through
        kube.create(job("deaf", runPolicy={"activeDeadlineSeconds": 6}))
        phase(kube, "deaf", "Running")
        eventually(lambda: operator.value("yolojob_watch_lag_seconds") == 0, "all was seen")
        faulty.faults.deaf = True
        assert phase(kube, "deaf", "Failed")["completionTime"]
        eventually(lambda: operator.value("yolojob_watch_lag_seconds") > 2, "the lag grows")
        assert operator.ask("/healthz") == (200, "ok\n"), "a few seconds are nothing to be killed for"
        faulty.cut()
        faulty.faults.deaf = False
        eventually(lambda: operator.value("yolojob_watch_lag_seconds") == 0, "the new watch shows it")

    def test_a_minute_without_an_api_server(self, kube: Kube, through: tuple[Operator, Proxy]) -> None:
        operator, faulty = through
        kube.create(job("through", 0, "20s"))
        kube.create(job("late", runPolicy={"activeDeadlineSeconds": 10}))
        phase(kube, "through", "Running")
        phase(kube, "late", "Running")
        faulty.faults.away = True
        faulty.cut()
        kube.create(job("meanwhile", 0, "1s"))
        began = time.monotonic()
        eventually(lambda: time.monotonic() - began > 60, "a minute has passed", seconds=70, every=1.0)
        assert operator.alive
        assert not operator.leads, "whoever cannot renew its lease rests"
        faulty.faults.away = False
        for name, wanted in (("through", "Succeeded"), ("late", "Failed"), ("meanwhile", "Succeeded")):
            status = phase(kube, name, wanted, seconds=40)
            assert (status["attempt"], status["restarts"], status["disruptions"]) == (1, 0, 0)

    def test_a_minute_of_an_api_server_that_answers_nothing_but_errors(
        self, kube: Kube, through: tuple[Operator, Proxy]
    ) -> None:
        """Lists, watches and the lease are refused, too; longer than kopf's own patience."""
        operator, faulty = through
        kube.create(job("refused", 0, "20s"))
        phase(kube, "refused", "Running")
        faulty.faults.refusals, faulty.faults.share, faulty.faults.reads = (500,), 1.0, True
        faulty.cut()
        kube.create(job("unheard", 0, "1s"))
        began = time.monotonic()
        eventually(lambda: time.monotonic() - began > 70, "longer than that", seconds=80, every=1.0)
        assert operator.alive
        assert not operator.leads
        faulty.faults.refusals, faulty.faults.reads = (), False
        for name in ("refused", "unheard"):
            status = phase(kube, name, "Succeeded", seconds=60)
            assert (status["attempt"], status["restarts"], status["disruptions"]) == (1, 0, 0)


class TestOthers:
    def test_of_two_operators_one_works(self, kube: Kube, tmp_path: Path) -> None:
        first = Operator(kube, tmp_path / "first")
        eventually(lambda: first.leads, "the first leads")
        second = Operator(kube, tmp_path / "second")
        try:
            eventually(lambda: "this one waits" in second.log.read_text(), "the second waits")
            kube.create(job("mine", 0, "1s"))
            phase(kube, "mine", "Succeeded")
            assert second.value("yolojob_leader") == 0
            assert second.value("yolojob_api_requests_total", resource="pods") == 0
            first.stop()
            eventually(lambda: second.leads, "the second takes over, since the first has let go", seconds=10)
            kube.create(job("yours", 0, "1s"))
            phase(kube, "yours", "Succeeded")
        finally:
            for operator in (first, second):
                if operator.alive:
                    operator.stop()

    def test_the_lease_of_a_dead_process_is_free_and_that_of_a_stranger_is_not(
        self, kube: Kube, tmp_path: Path
    ) -> None:
        operator = Operator(kube, tmp_path / "log")
        eventually(lambda: operator.leads, "it leads")
        operator.kill()
        operator.start()
        eventually(lambda: operator.leads, "its own dead self does not hold it up", seconds=8)
        operator.stop()
        taken = {"spec": {"holderIdentity": "somebody", "leaseDurationSeconds": 15}}
        kube.run("patch", "lease", "yolojob-operator", "--type=merge", "--patch", json.dumps(taken))
        operator.start()
        began = time.monotonic()
        eventually(lambda: operator.leads, "a lease that nobody renews runs out", seconds=40)
        assert time.monotonic() - began > 13
        operator.stop()

    def test_a_broken_job_harms_no_other(self, kube: Kube, operator: Operator) -> None:
        """Stored while the CRD had no rules: it is told so, and the others go on."""
        crd = yaml.safe_load((ROOT / "manifests" / "crd.yaml").read_text())
        loose = json.loads(json.dumps(crd))
        schema = loose["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        schema["properties"]["spec"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        try:
            kube.run("replace", "--filename", "-", input=json.dumps(loose))
            broken = job("broken", train={"epochs": 0})
            eventually(lambda: kube.create(broken, check=False).returncode == 0, "the loose schema is in force")
            kube.create(job("hopeless", train={"epochs": "many"}))
        finally:
            kube.run("replace", "--filename", "-", input=json.dumps(crd))
        eventually(lambda: kube.condition("broken", "Accepted").get("status") == "False", "it is told")
        condition = kube.condition("broken", "Accepted")
        assert condition["reason"] == "InvalidSpec"
        assert "spec.train.epochs" in condition["message"]

        def events() -> list[str]:
            found = kube.get("events", "--field-selector=involvedObject.name=hopeless,reason=InvalidSpec")
            return [e["message"] for e in found["items"]]

        eventually(events, "the API server takes no status for it, so there is an event")
        assert "spec.train.epochs" in events()[0]
        kube.create(job("sound", 0, "1s"))
        phase(kube, "sound", "Succeeded")
        assert kube.pods("broken") == kube.pods("hopeless") == []
        assert len(events()) == 1, "once"

    def test_a_quota_is_named_and_the_deadline_frees_what_was_held(self, kube: Kube, operator: Operator) -> None:
        quota = {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": "tight"},
            "spec": {"hard": {"pods": "1"}},
        }
        kube.create(quota)
        try:
            eventually(lambda: kube.get("resourcequota", "tight").get("status", {}).get("hard"), "the quota counts")
            kube.create(job("crowded", runPolicy={"preRunningDeadlineSeconds": 6}))
            eventually(lambda: kube.condition("crowded", "Scheduled").get("reason") == "QuotaExceeded", "it is said")
            assert "tight" in kube.condition("crowded", "Scheduled")["message"]
            assert len(kube.pods("crowded")) == 1
            phase(kube, "crowded", "Failed")
            failed = kube.condition("crowded", "Failed")
            assert failed["reason"] == "QuotaExceeded"
            assert "preRunningDeadlineSeconds" in failed["message"]
            eventually(lambda: not kube.pods("crowded"), "it frees what it held")
        finally:
            kube.run("delete", "resourcequota", "tight")

    def test_a_missing_gang_scheduler_is_named(self, kube: Kube, operator: Operator) -> None:
        if kube.run("get", "crd", "podgroups.scheduling.x-k8s.io", check=False).returncode == 0:
            kube.run("delete", "crd", "podgroups.scheduling.x-k8s.io")
        kube.create(job("ganged", scheduling={"gang": "coscheduling"}))
        eventually(lambda: kube.condition("ganged", "Scheduled").get("reason") == "NoGangScheduler", "it is said")
        assert "scheduling.x-k8s.io" in kube.condition("ganged", "Scheduled")["message"]
        assert kube.pods("ganged") == []

    def test_a_deleted_job_leaves_no_series(self, kube: Kube, operator: Operator) -> None:
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
    """A file to which every change of a pod is written: name, attempt, uid."""
    path = tmp_path / "pods"
    line = r'{.metadata.name} {.metadata.labels.yolojob\.dev/attempt} {.metadata.uid}{"\n"}'
    kubectl = shutil.which("kubectl", path=kube.environment["PATH"]) or "kubectl"
    command = [kubectl, "--namespace", kube.namespace, "get", "pods", "--watch", "--output", f"jsonpath={line}"]
    stopped, watches = threading.Event(), list[subprocess.Popen[bytes]]()

    def follow() -> None:
        with path.open("a") as out:
            while not stopped.is_set():  # the API server ends the watch of a reader that is too slow for it
                watches.append(subprocess.Popen(command, env=kube.environment, stdout=out))
                watches[-1].wait()

    following = threading.Thread(target=follow)
    following.start()
    yield path
    stopped.set()
    while following.is_alive():
        watches[-1].terminate()
        following.join(0.2)


def test_fifty_jobs_and_an_operator_that_is_killed_at_random(kube: Kube, operator: Operator, all_pods: Path) -> None:
    """No pod twice, no job lost, no restart uncounted, no deadline missed."""
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
        moment = time.monotonic() + chance.uniform(0.5, 3.0)
        eventually(lambda moment=moment: time.monotonic() > moment, "a while", every=0.05)  # type: ignore[misc]
        operator.kill()
        operator.start()
        killed += 1
    assert killed >= 10
    found = all_finished(kube, names, 150)
    assert len(found) == 50
    seen: dict[tuple[str, str], set[str]] = {}
    for line in all_pods.read_text().splitlines():
        pod, attempt, uid = line.split()
        seen.setdefault((pod, attempt), set()).add(uid)
    assert len(seen) >= 2 * 50
    assert [pod for pod, uids in seen.items() if len(uids) > 1] == [], "no pod twice"
    for name, status in found.items():
        _, *wanted = ends[kinds[name]]
        assert [status["phase"], status["attempt"], status["restarts"]] == wanted, (name, kinds[name], status)
        assert attempts(kube, name) <= {str(status["attempt"])}, "no pod of an attempt that is over"
        if kinds[name] == "late":
            took = datetime.fromisoformat(status["completionTime"]) - datetime.fromisoformat(status["startTime"])
            assert 20 <= took.total_seconds() <= 26, (
                "the operator may have been away at that moment, for as long as it starts"
            )
