"""The chart's ValidatingAdmissionPolicy: what somebody can do who has the token of the operator."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from rendered_chart import render
from support import eventually
from support.jobs import job
from support.kube import Kube
from support.plans import DEFAULTS
from yolojob_operator.objects import isolation, pods

from yolojob.api.job import YoloTrainingJob

ACCOUNT = "yolojob-operator"
Path = tuple[str | int, ...]
TOKEN = {"serviceAccountToken": {"path": "token"}}


def install(kube: Kube, *values: str) -> list[dict[str, Any]]:
    """Installs the chart's policy under a name of its own, and an account that may create and delete objects."""
    text = render("--namespace", kube.namespace, *values)
    policies = [d for d in yaml.safe_load_all(text) if d and d["kind"].startswith("ValidatingAdmissionPolicy")]
    for document in policies:
        document["metadata"]["name"] = kube.namespace
        document["spec"].update({"policyName": kube.namespace} if "policyName" in document["spec"] else {})
    rules = [
        {"apiGroups": [""], "resources": ["pods", "services", "secrets"], "verbs": ["create", "delete"]},
        {"apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies"], "verbs": ["create"]},
    ]
    rbac = "rbac.authorization.k8s.io/v1"
    role = {"apiVersion": rbac, "kind": "Role", "metadata": {"name": ACCOUNT}, "rules": rules}
    binding = {
        "apiVersion": rbac,
        "kind": "RoleBinding",
        "metadata": {"name": ACCOUNT},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": ACCOUNT},
        "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": kube.namespace}],
    }
    kube.apply(role, binding, *policies)
    eventually(lambda: refusal(kube, bare_pod()), "the policy is in force", seconds=60)
    return policies


@pytest.fixture
def policy(kube: Kube) -> Iterator[None]:
    documents = install(kube)
    yield
    kube.run("delete", "--filename", "-", input=yaml.safe_dump_all(documents))


def refusal(kube: Kube, document: dict[str, Any], verb: str = "create") -> str:
    """Why the API server refuses a request of the operator's account; empty if it would accept it."""
    user = f"system:serviceaccount:{kube.namespace}:{ACCOUNT}"
    text = yaml.safe_dump(document)
    done = kube.run(verb, "--dry-run=server", "--as", user, "--filename", "-", input=text, check=False)
    assert done.returncode == 0 or "denied" in done.stderr, done.stderr
    return str(done.stderr) if done.returncode else ""


def bare_pod() -> dict[str, Any]:
    container = {"name": "c", "image": "x"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "bare"}, "spec": {"containers": [container]}}


def training_job(kube: Kube) -> YoloTrainingJob:
    document = job("digits")
    document["metadata"] |= {"namespace": kube.namespace, "uid": "0c7c5f0e-0000-4000-8000-000000000000"}
    return YoloTrainingJob.model_validate(document)


def changed(document: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """Returns a copy with this value at this path."""
    result = copy.deepcopy(document)
    target: Any = result
    for part in path[:-1]:
        target = target[part] if isinstance(part, int) else target.setdefault(part, {})
    target[path[-1]] = value
    return result


@pytest.mark.usefixtures("policy")
def test_objects_of_a_job_are_accepted_and_everything_else_is_refused(kube: Kube) -> None:
    owner = training_job(kube)
    kube.run("create", "serviceaccount", "admin")
    pod = pods.worker(owner, 0, 1, DEFAULTS)
    secret = {**isolation.secret(owner), "data": {**isolation.random_data(), "username": ""}}
    service = pods.service(owner)
    for document in (pod, service, secret, isolation.network_policy(owner, DEFAULTS)):
        assert refusal(kube, document) == "", document["kind"]
    spec: Path = ("spec",)
    context: Path = ("spec", "containers", 0, "securityContext")
    hostile: list[tuple[dict[str, Any], str]] = [
        (bare_pod(), "a YoloTrainingJob controls"),
        (changed(pod, ("metadata", "ownerReferences"), []), "a YoloTrainingJob controls"),
        (changed(pod, ("metadata", "ownerReferences", 0, "controller"), False), "a YoloTrainingJob controls"),
        (changed(pod, ("metadata", "ownerReferences", 0, "apiVersion"), "v1"), "a YoloTrainingJob controls"),
        (changed(pod, ("metadata", "labels"), {}), "managed-by"),
        (changed(pod, (*spec, "hostNetwork"), True), "hostNamespaces"),
        (changed(pod, (*spec, "hostPID"), True), "hostNamespaces"),
        (changed(pod, (*spec, "hostIPC"), True), "hostNamespaces"),
        (changed(pod, (*spec, "nodeName"), "node-0"), "nodeName"),
        (changed(pod, (*spec, "volumes", 1), {"name": "tmp", "hostPath": {"path": "/"}}), "hostPath"),
        (changed(pod, (*spec, "containers", 0, "securityContext"), {"privileged": True}), "privileged"),
        (changed(pod, (*spec, "automountServiceAccountToken"), True), "serviceAccount"),
        (changed(pod, (*spec, "serviceAccountName"), "admin"), "serviceAccount"),
        (changed(pod, (*spec, "volumes", 1), {"name": "tmp", "projected": {"sources": [TOKEN]}}), "serviceAccount"),
        (changed(pod, (*spec, "volumes", 1), {"name": "tmp", "nfs": {"server": "x", "path": "/"}}), "otherVolumes"),
        (changed(pod, (*spec, "priorityClassName"), "system-node-critical"), "scheduling"),
        (changed(pod, (*context, "capabilities"), {"drop": ["ALL"], "add": ["SYS_ADMIN"]}), "privileged"),
        (changed(pod, (*context, "capabilities"), {}), "privileged"),
        (changed(pod, (*context, "allowPrivilegeEscalation"), True), "privileged"),
        (changed(pod, (*context, "runAsUser"), 0), "privileged"),
        (changed(pod, (*spec, "securityContext", "runAsUser"), 0), "privileged"),
        (changed(pod, (*spec, "securityContext", "seccompProfile"), {"type": "Unconfined"}), "privileged"),
        (changed(pod, (*spec, "containers", 0, "ports", 0), {"containerPort": 1, "hostPort": 1}), "hostNamespaces"),
        (changed(isolation.network_policy(owner, DEFAULTS), (*spec, "podSelector"), {}), "select the pods of a job"),
        (changed(secret, ("type",), "kubernetes.io/basic-auth"), "no tokens"),
        (changed(service, (*spec, "clusterIP"), ""), "headless"),
    ]
    for document, reason in hostile:
        assert reason in refusal(kube, document), reason
    init = [{"name": "i", "image": "x", "securityContext": {"privileged": True}}]
    assert "privileged" in refusal(kube, changed(pod, (*spec, "initContainers"), init))


@pytest.mark.usefixtures("policy")
def test_pod_of_somebody_else_is_not_deleted(kube: Kube) -> None:
    kube.create(bare_pod())
    assert "a YoloTrainingJob controls" in refusal(kube, bare_pod(), "delete")
    kube.run("delete", "pod", "bare", "--now")


def test_what_the_installation_allows_is_accepted(kube: Kube) -> None:
    documents = install(kube, "--set", "workers.allow={hostNamespaces,hostPath,nodeName}")
    try:
        pod = pods.worker(training_job(kube), 0, 1, DEFAULTS)
        allowed = changed(pod, ("spec", "hostNetwork"), True)
        allowed = changed(allowed, ("spec", "volumes", 1), {"name": "tmp", "hostPath": {"path": "/"}})
        assert refusal(kube, changed(allowed, ("spec", "nodeName"), "node-0")) == ""
    finally:
        kube.run("delete", "--filename", "-", input=yaml.safe_dump_all(documents))
