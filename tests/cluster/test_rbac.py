"""RBAC: the chart grants the operator exactly the rights that it uses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from devcluster.control_plane import AUDIT_LOG
from rendered_chart import render
from support import eventually
from support.crds import crds
from support.jobs import job, let_pass, phase, suspend
from support.kube import Kube
from support.operator_process import Operator

pytestmark = pytest.mark.timeout(300)
ADMISSION = ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
Right = tuple[str, str]
"""(verb, resource or resource/subresource)."""


def rbac(kube: Kube, *values: str) -> list[dict[str, Any]]:
    """The service account, roles, bindings and admission policy of the chart, installed in this namespace."""
    text = render("--namespace", kube.namespace, *values)
    kinds = ("ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding", *ADMISSION)
    return [d for d in yaml.safe_load_all(text) if d and d["kind"] in kinds]


def identity(kube: Kube, account: str, folder: Path) -> Path:
    """A kubeconfig with the token of a service account."""
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
    """An operator with only the chart's rights; these rights; its user name."""
    clusterwide = request.param == "clusterwide"
    values = ["--set", f"lease.namespace={kube.namespace}" if clusterwide else f"watchNamespaces={{{kube.namespace}}}"]
    documents = rbac(kube, *values)
    bound = {d["roleRef"]["name"] for d in documents if d["kind"].endswith("RoleBinding")}
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
    """The rights that a user used and those that it lacked, from the audit log of the API server after `seen` lines."""
    allowed, denied = set[Right](), set[Right]()
    for line in AUDIT_LOG.read_text().splitlines()[seen:]:
        if user not in line:
            continue
        entry = json.loads(line)
        target = entry.get("objectRef")
        if entry["user"]["username"] != user or target is None:
            continue
        right = (entry["verb"], "/".join(filter(None, (target["resource"], target.get("subresource")))))
        forbidden = entry["annotations"].get("authorization.k8s.io/decision") == "forbid"
        (denied if forbidden else allowed).add(right)
    return allowed, denied


def has_name_conflict(kube: Kube, name: str) -> bool:
    return kube.condition(name, "Scheduled").get("reason") == "NameConflict"


def use_every_right(kube: Kube, user: str, seen: int) -> None:
    """Run jobs that together need each of the operator's rights."""
    kube.run("apply", "--server-side", "--filename", str(crds("scheduling.x-k8s.io_podgroups.yaml")))
    kube.wait_for_crd("podgroups.scheduling.x-k8s.io")
    kube.create(job("good", 0, "1s", runPolicy={"ttlSecondsAfterFinished": 0}))
    kube.create(job("bad", 1, "1s", runPolicy={"backoffLimit": 1}))
    foreign = {"metadata": {"name": "taken-worker-1"}, "spec": {"containers": [{"name": "c", "image": "x"}]}}
    kube.create({"apiVersion": "v1", "kind": "Pod", **foreign})
    service = {"metadata": {"name": "named"}, "spec": {"clusterIP": "None"}}
    kube.create({"apiVersion": "v1", "kind": "Service", **service})
    for name in ("taken", "named"):
        kube.create(job(name))
    eventually(lambda: not kube.get("yolotrainingjob", "good"), "the job is deleted after its TTL")
    phase(kube, "bad", "Failed")
    for name in ("taken", "named"):
        eventually(partial(has_name_conflict, kube, name), "the foreign object is reported")
    kube.create(job("gang", scheduling={"gang": "coscheduling"}))
    eventually(lambda: len(kube.pods("gang")) == 2, "its pods exist")
    # No scheduler has the name of the gang's. A pod without a node, when deleted, is gone at once, and the operator may
    # create it again in the same attempt; a failed one is always seen.
    failed = json.dumps({"status": {"phase": "Failed", "reason": "Evicted"}})
    kube.run("patch", "pod", "gang-worker-0", "--subresource=status", "--type=merge", "--patch", failed)
    eventually(lambda: kube.status("gang").get("attempt") == 2, "the next attempt uses its group again")
    suspend(kube, "gang", True)
    eventually(lambda: not kube.get("podgroups.scheduling.x-k8s.io", "gang"), "its group is deleted")
    kube.create(job("kept", scheduling={"gang": "kueue"}))
    phase(kube, "kept", "Running")
    finalizer = {"metadata": {"finalizers": ["kueue.x-k8s.io/managed"]}}
    kube.run("patch", "pod", "kept-worker-0", "--type=merge", "--patch", json.dumps(finalizer))
    kube.run("delete", "pod", "kept-worker-0", "--wait=false")
    eventually(lambda: kube.status("kept").get("attempt") == 2, "the job starts another attempt")

    def workload_requested() -> bool:
        return any(resource == "workloads" for _, resource in set().union(*requests(user, seen)))

    eventually(workload_requested, "the operator looks for the workload whose finalizer keeps the pod")
    kube.run("patch", "pod", "kept-worker-0", "--type=merge", "--patch", '{"metadata":{"finalizers":[]}}')


@pytest.mark.exclusive
def test_chart_grants_the_rights_that_the_operator_uses_and_no_more(
    kube: Kube, installed: tuple[Operator, set[Right], str]
) -> None:
    if not kube.is_devcluster:
        pytest.skip("reads the audit log of the test cluster's API server")
    operator, granted, user = installed
    eventually(lambda: operator.leads, "the operator leads")
    operator.stop()
    kube.run("delete", "lease", "yolojob-operator")
    seen = len(AUDIT_LOG.read_text().splitlines())
    operator.start()
    eventually(lambda: operator.leads, "the operator leads")
    use_every_right(kube, user, seen)
    # An operator outside of the cluster, as here, needs this right; an operator inside does not.
    outside = {("get", "pods/proxy")}
    # Used only after a conflict, where kopf reads single objects, and for a Workload that a pod of the job owns: Kueue
    # creates it, see test_kueue.py.
    optional = {("get", "yolotrainingjobs"), ("get", "nodes"), ("delete", "workloads")}
    allowed, denied = requests(user, seen)
    assert denied - outside == set()
    assert allowed <= granted | outside
    assert granted - allowed - optional == set()
    kube.run("delete", "pod", "taken-worker-1")
    kube.run("delete", "service", "named")
    kube.run("delete", "yolotrainingjobs", "--all")
    kube.run("delete", "crd", "podgroups.scheduling.x-k8s.io")


def test_deleted_watched_namespace_does_not_stop_the_others(kube: Kube, tmp_path: Path) -> None:
    """Its deletion first removes the operator's rights there, and the lease. Other namespaces are still reconciled."""
    other = f"{kube.namespace}-other"
    kube.run("create", "namespace", other)
    documents = rbac(kube, "--set", f"watchNamespaces={{{kube.namespace},{other}}}")
    in_other = [d for d in documents if d["metadata"].get("namespace") == other]
    in_first = [d for d in documents if d not in in_other]
    assert in_other
    kube.apply(*in_first)
    Kube(kube.kubeconfig, other).apply(*in_other)
    account = next(d["metadata"]["name"] for d in documents if d["kind"] == "ServiceAccount")
    operator = Operator(kube, tmp_path / "log", kubeconfig=identity(kube, account, tmp_path), also=other)
    try:
        eventually(lambda: operator.leads, "the operator leads")
        kube.run("delete", "namespace", other)
        for name in ("now", "later"):
            # Longer than the 10 s for which a leader may go on without renewing a lease.
            let_pass(12)
            kube.create(job(name, 0))
            phase(kube, name, "Succeeded")
            assert operator.leads
            operator.stop()
            operator.start()
        kube.run("create", "namespace", other)
        back = Kube(kube.kubeconfig, other)
        back.apply(*in_other)
        back.create(job("returned", 0))
        phase(back, "returned", "Succeeded", seconds=60)
    finally:
        operator.stop()
        kube.run("delete", "namespace", other, "--ignore-not-found")
        kube.run("delete", "yolotrainingjobs", "--all")
        kube.run("delete", "--filename", "-", input=yaml.safe_dump_all(in_first))
