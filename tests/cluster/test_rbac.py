"""What the chart lets the operator do is what it does: nothing is denied, nothing is granted in vain."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from devcluster.control_plane import AUDIT_LOG
from rendered_chart import render
from support import eventually
from support.crds import crds
from support.jobs import job, phase, suspend
from support.kube import Kube
from support.operator_process import Operator

pytestmark = pytest.mark.timeout(300)
Right = tuple[str, str]
"""(verb, resource or resource/subresource)."""


def rbac(kube: Kube, *values: str) -> list[dict[str, Any]]:
    """The chart's service account and roles, in this namespace."""
    text = render("--namespace", kube.namespace, *values)
    kinds = ("ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")
    return [d for d in yaml.safe_load_all(text) if d and d["kind"] in kinds]


def identity(kube: Kube, account: str, folder: Path) -> Path:
    """A kubeconfig of a service account."""
    token = kube.run("create", "token", account).stdout.strip()
    config = yaml.safe_load(kube.kubeconfig.read_text())
    config["users"] = [{"name": config["users"][0]["name"], "user": {"token": token}}]
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(params=["clusterwide", "namespaced"])
def installed(
    request: pytest.FixtureRequest, kube: Kube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Operator, set[Right], str]]:
    """An operator with the chart's rights and no others; those rights; its user name."""
    clusterwide = request.param == "clusterwide"
    values = ["--set", f"lease.namespace={kube.namespace}" if clusterwide else f"watchNamespaces={{{kube.namespace}}}"]
    documents = rbac(kube, *values)
    bound = {d["roleRef"]["name"] for d in documents if d["kind"].endswith("Binding")}
    roles = [d for d in documents if d["kind"] in ("Role", "ClusterRole") and d["metadata"]["name"] in bound]
    assert clusterwide or not [d for d in documents if d["kind"].startswith("Cluster")], (
        "no rights beyond the namespace"
    )
    kube.run("apply", "--filename", "-", input=yaml.safe_dump_all(documents))
    account = next(d["metadata"]["name"] for d in documents if d["kind"] == "ServiceAccount")
    path = identity(kube, account, tmp_path)
    granted = {
        (verb, resource)
        for role in roles
        for rule in role["rules"]
        for verb in rule["verbs"]
        for resource in rule["resources"]
    }
    monkeypatch.setenv("YOLOJOB_LEASE_NAMESPACE", kube.namespace)
    operator = Operator(kube, tmp_path / "log", clusterwide=clusterwide, kubeconfig=path)
    yield operator, granted, f"system:serviceaccount:{kube.namespace}:{account}"
    if operator.alive:
        operator.stop()
    kube.run("delete", "--filename", "-", input=yaml.safe_dump_all(documents))


def requests(user: str, seen: int) -> tuple[set[Right], set[Right]]:
    """(allowed, denied), from the API server's audit log after its first `seen` lines."""
    allowed, denied = set(), set()
    for line in AUDIT_LOG.read_text().splitlines()[seen:]:
        if user not in line:
            continue
        entry = json.loads(line)
        what = entry.get("objectRef")
        if entry["user"]["username"] != user or what is None:
            continue
        right = (entry["verb"], "/".join(filter(None, (what["resource"], what.get("subresource")))))
        forbidden = entry["annotations"].get("authorization.k8s.io/decision") == "forbid"
        (denied if forbidden else allowed).add(right)
    return allowed, denied


def everything(kube: Kube) -> None:
    """Jobs that need each of the rights."""
    kube.run("apply", "--server-side", "--filename", str(crds("scheduling.x-k8s.io_podgroups.yaml")))
    kube.run("wait", "--for=condition=Established", "crd/podgroups.scheduling.x-k8s.io", "--timeout=30s")
    kube.create(job("good", 0, "1s", runPolicy={"ttlSecondsAfterFinished": 0}))
    kube.create(job("bad", 1, "1s", runPolicy={"backoffLimit": 1}))
    foreign = {"metadata": {"name": "taken-worker-1"}, "spec": {"containers": [{"name": "c", "image": "x"}]}}
    kube.create({"apiVersion": "v1", "kind": "Pod", **foreign})
    service = {"metadata": {"name": "named"}, "spec": {"clusterIP": "None"}}
    kube.create({"apiVersion": "v1", "kind": "Service", **service})
    for name in ("taken", "named"):
        kube.create(job(name))
    eventually(lambda: not kube.get("yolotrainingjob", "good"), "deleted when its time has come")
    phase(kube, "bad", "Failed")
    for name in ("taken", "named"):
        eventually(
            lambda n=name: kube.condition(n, "Scheduled").get("reason") == "NameConflict", "foreign objects are seen"
        )  # type: ignore[misc]
    kube.create(job("gang", scheduling={"gang": "coscheduling"}))
    eventually(lambda: len(kube.pods("gang")) == 2, "its pods")
    kube.run("delete", "pod", "gang-worker-0")
    eventually(lambda: kube.status("gang").get("attempt") == 2, "its group is used again")
    suspend(kube, "gang", True)
    eventually(lambda: not kube.get("podgroups.scheduling.x-k8s.io", "gang"), "its group is gone")
    kube.create(job("kept", scheduling={"gang": "kueue"}))
    phase(kube, "kept", "Running")
    finalizer = {"metadata": {"finalizers": ["kueue.x-k8s.io/managed"]}}
    kube.run("patch", "pod", "kept-worker-0", "--type=merge", "--patch", json.dumps(finalizer))
    kube.run("delete", "pod", "kept-worker-0", "--wait=false")
    eventually(lambda: kube.status("kept").get("attempt") == 2, "the pod is on its way")
    keeper = ("kueue.x-k8s.io", "workloads")
    eventually(
        lambda: all(word in AUDIT_LOG.read_text() for word in keeper), "the workload that keeps it is looked for"
    )
    kube.run("patch", "pod", "kept-worker-0", "--type=merge", "--patch", '{"metadata":{"finalizers":[]}}')


def test_nothing_is_denied_and_nothing_granted_in_vain(kube: Kube, installed: tuple[Operator, set[Right], str]) -> None:
    if not kube.is_devcluster:
        pytest.skip("reads the audit log of the test cluster's API server")
    operator, granted, user = installed
    eventually(lambda: operator.leads, "it leads")
    operator.stop()
    kube.run("delete", "lease", "yolojob-operator")
    seen = len(AUDIT_LOG.read_text().splitlines())
    operator.start()
    eventually(lambda: operator.leads, "it leads")
    everything(kube)
    # Rights of an installation outside of the cluster, as here, that one inside does not need.
    outside = {("get", "pods/proxy")}
    free = {("get", "yolotrainingjobs"), ("get", "nodes")}  # after a conflict; and where kopf looks at a single object
    allowed, denied = requests(user, seen)
    assert denied - outside == set()
    assert allowed <= granted | outside
    assert granted - allowed - free == set()
    kube.run("delete", "pod", "taken-worker-1")
    kube.run("delete", "service", "named")
    kube.run("delete", "yolotrainingjobs", "--all")
    kube.run("delete", "crd", "podgroups.scheduling.x-k8s.io")


def test_a_watched_namespace_may_go(kube: Kube, tmp_path: Path) -> None:
    """Our rights in it go first, and with them the lease; the jobs of the others are looked after, now and after a restart."""
    other = f"{kube.namespace}-other"
    kube.run("create", "namespace", other)
    documents = rbac(kube, "--set", f"watchNamespaces={{{kube.namespace},{other}}}")
    there = [d for d in documents if d["metadata"].get("namespace") == other]
    here = [d for d in documents if d not in there]
    assert there
    kube.apply(*here)
    Kube(kube.kubeconfig, other).apply(*there)
    account = next(d["metadata"]["name"] for d in documents if d["kind"] == "ServiceAccount")
    operator = Operator(kube, tmp_path / "log", kubeconfig=identity(kube, account, tmp_path), also=other)
    try:
        eventually(lambda: operator.leads, "it leads")
        kube.run("delete", "namespace", other)
        for name in ("now", "later"):
            # Longer than a lease that cannot be renewed is ours.
            began = time.monotonic()
            eventually(lambda t=began: time.monotonic() > t + 12, "a lease has run out", seconds=15)  # type: ignore[misc]
            kube.create(job(name, 0))
            phase(kube, name, "Succeeded")
            assert operator.leads
            operator.stop()
            operator.start()
        kube.run("create", "namespace", other)
        back = Kube(kube.kubeconfig, other)
        back.apply(*there)
        back.create(job("returned", 0))
        phase(back, "returned", "Succeeded", seconds=60)
    finally:
        operator.stop()
        kube.run("delete", "namespace", other, "--ignore-not-found")
        kube.run("delete", "yolotrainingjobs", "--all")
        kube.run("delete", "--filename", "-", input=yaml.safe_dump_all(here))
