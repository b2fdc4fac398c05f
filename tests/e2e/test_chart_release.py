"""The Helm release: its test, its rights, and an upgrade and a reinstallation while a training runs."""

from __future__ import annotations

import json

import pytest
from support import eventually
from support.examples import Pace, documents, finished, training
from support.kube import Kube
from support.release import HOME, Release

pytestmark = pytest.mark.timeout(1800)


def test_helm_test_trains(operator: Release) -> None:
    output = operator.helm("test", "yolojob", "--logs", "--timeout", "8m")
    assert "Phase:          Succeeded" in output, output
    assert "1 of 1 epochs" in output, output
    home = Kube(operator.kube.kubeconfig, HOME)
    assert not home.get("yolotrainingjob", "yolojob-test"), "the test leaves its job behind"


def test_operator_has_no_more_rights_than_it_needs(kube: Kube, operator: Release) -> None:
    """It may create pods but not read secrets, and its root file system is read-only."""
    account = f"system:serviceaccount:{HOME}:yolojob-operator"
    for action in ("get secrets", "list secrets", "create pods --subresource=exec", "update pods", "create pods"):
        allowed = kube.run("auth", "can-i", *action.split(), "--as", account, check=False).stdout.strip()
        assert allowed == ("yes" if action == "create pods" else "no"), action
    home = Kube(kube.kubeconfig, HOME)
    written = home.run("exec", "deployment/yolojob-operator", "--", "touch", "/app/x", check=False)
    assert "Read-only file system" in written.stderr


@pytest.mark.parametrize("volume", ["lives"], indirect=True)
def test_training_survives_upgrade_and_reinstallation(kube: Kube, operator: Release, volume: str, pace: Pace) -> None:
    """The worker has a read-only root file system and no API token; its pods keep running without the operator."""
    epochs = pace.epochs(150)  # an upgrade and a reinstallation take a minute and a half
    kube.apply(*documents("lives", epochs=epochs, patience=epochs))
    training(kube, "lives", 1)
    written = kube.run("exec", "lives-worker-0", "--", "touch", "/app/x", check=False)
    assert "Read-only file system" in written.stderr
    token = kube.run("exec", "lives-worker-0", "--", "ls", "/var/run/secrets/kubernetes.io", check=False)
    assert "No such file" in token.stderr

    def uids() -> list[str]:
        return [pod["metadata"]["uid"] for pod in operator.pods()]

    (before,) = uids()
    operator.install("--set", "resources.requests.cpu=60m")
    assert uids() != [before]
    epoch = kube.status("lives")["progress"]["epoch"]
    training(kube, "lives", epoch + 1)

    operator.uninstall()
    assert kube.get("crd", "yolotrainingjobs.yolojob.dev"), "the CRD was deleted with the release"
    job = kube.get("yolotrainingjob", "lives")
    assert job["status"]["phase"] == "Running", json.dumps(job["status"], indent=1)
    assert len(kube.pods("lives")) == 2, "the pods were deleted with the release"
    operator.install()
    status = finished(kube, "lives")
    assert status["phase"] == "Succeeded", json.dumps(status, indent=1)
    assert (status["attempt"], status["restarts"], status["disruptions"]) == (1, 0, 0)
    assert status["progress"]["epoch"] == epochs


def test_job_with_host_network_is_refused(kube: Kube, operator: Release) -> None:
    """The operator refuses it; where the chart allows it, the namespace's Pod Security refuses the pod."""
    job = documents("greedy")[0]
    del job["spec"]["storage"]
    job["spec"]["workers"]["template"] = {"spec": {"hostNetwork": True}}
    kube.apply(job)
    accepted = eventually(
        lambda: kube.condition("greedy", "Accepted"), "the operator accepts or refuses it", seconds=30
    )
    assert (accepted["status"], accepted["reason"]) == ("False", "TemplateForbidden")
    assert not kube.pods("greedy")
    operator.install("--set", "workers.allow={hostNamespaces}")
    try:
        message = eventually(
            lambda: next(
                (c["message"] for c in kube.status("greedy")["conditions"] if "PodSecurity" in c["message"]), ""
            ),
            "the namespace refuses the pod",
            seconds=60,
        )
        assert "hostNetwork" in message or "host namespaces" in message, message
    finally:
        kube.run("delete", "yolotrainingjob", "greedy")
        operator.install()
