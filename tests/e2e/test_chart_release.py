"""The chart from its installation to its end, while a training runs."""

from __future__ import annotations

import json

import pytest
from support import eventually
from support.examples import documents, finished, training
from support.kube import Kube
from support.release import HOME, Release

pytestmark = pytest.mark.timeout(900)


def test_helm_test_trains(operator: Release) -> None:
    words = operator.helm("test", "yolojob", "--logs", "--timeout", "8m")
    assert "Phase:          Succeeded" in words, words
    assert "1 of 1 epochs" in words, words
    home = Kube(operator.kube.kubeconfig, HOME)
    assert not home.get("yolotrainingjob", "yolojob-test"), "it cleans up behind itself"


def test_who_may_what(kube: Kube, operator: Release) -> None:
    """The operator reads no secrets; neither it nor a worker may write to its own disk; a worker has no API token."""
    account = f"system:serviceaccount:{HOME}:yolojob-operator"
    for asked in ("get secrets", "list secrets", "create pods --subresource=exec", "update pods", "create pods"):
        answer = kube.run("auth", "can-i", *asked.split(), "--as", account, check=False).stdout.strip()
        assert answer == ("yes" if asked == "create pods" else "no"), asked
    home = Kube(kube.kubeconfig, HOME)
    written = home.run("exec", "deployment/yolojob-operator", "--", "touch", "/app/x", check=False)
    assert "Read-only file system" in written.stderr


@pytest.mark.parametrize("volume", ["lives"], indirect=True)
def test_a_training_outlives_upgrade_and_reinstallation(kube: Kube, operator: Release, volume: str) -> None:
    kube.apply(*documents("lives", epochs=60, patience=100))
    training(kube, "lives", 1)
    written = kube.run("exec", "lives-worker-0", "--", "touch", "/app/x", check=False)
    assert "Read-only file system" in written.stderr
    token = kube.run("exec", "lives-worker-0", "--", "ls", "/var/run/secrets/kubernetes.io", check=False)
    assert "No such file" in token.stderr

    def operators() -> list[str]:
        pods = Kube(kube.kubeconfig, HOME).get("pods", "--selector", "app.kubernetes.io/name=yolojob-operator")["items"]
        return [p["metadata"]["uid"] for p in pods if not p["metadata"].get("deletionTimestamp")]

    (before,) = operators()
    operator.install("--set", "resources.requests.cpu=60m")
    assert operators() != [before]
    epoch = kube.status("lives")["progress"]["epoch"]
    training(kube, "lives", epoch + 1)

    operator.uninstall()
    assert kube.get("crd", "yolotrainingjobs.yolojob.dev"), "the kind stays"
    job = kube.get("yolotrainingjob", "lives")
    assert job["status"]["phase"] == "Running", json.dumps(job["status"], indent=1)
    assert len(kube.pods("lives")) == 2, "and so do the pods"
    operator.install()
    status = finished(kube, "lives")
    assert status["phase"] == "Succeeded", json.dumps(status, indent=1)
    assert (status["attempt"], status["restarts"], status["disruptions"]) == (1, 0, 0)
    assert status["progress"]["epoch"] == 60


def test_a_pod_that_asks_for_more_is_refused(kube: Kube, operator: Release) -> None:
    """Where the chart allows a privilege, the namespace has the last word, and the job says so."""
    job = documents("greedy")[0]
    del job["spec"]["storage"]
    job["spec"]["workers"]["template"] = {"spec": {"hostNetwork": True}}
    kube.apply(job)
    accepted = eventually(lambda: kube.condition("greedy", "Accepted"), "it is judged", seconds=30)
    assert accepted
    assert (accepted["status"], accepted["reason"]) == ("False", "TemplateForbidden")
    assert not kube.pods("greedy")
    operator.install("--set", "workers.allow={hostNamespaces}")
    try:
        words = eventually(
            lambda: next(
                (c["message"] for c in kube.status("greedy")["conditions"] if "PodSecurity" in c["message"]), ""
            ),
            "the namespace refuses the pod",
            seconds=60,
        )
        assert "hostNetwork" in words or "host namespaces" in words, words
    finally:
        kube.run("delete", "yolotrainingjob", "greedy")
        operator.install()
