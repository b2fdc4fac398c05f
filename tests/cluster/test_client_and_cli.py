"""The client and the command line's verbs, against a real API server and the operator."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import eventually, minimal
from support.api_faults import proxy
from support.kube import Kube
from support.operator_process import Operator

from yolojob.api import manifest
from yolojob.api.errors import NotFound
from yolojob.api.job import YoloTrainingJob
from yolojob.api.status import JobPhase
from yolojob.client import Client, ClusterError

pytestmark = pytest.mark.usefixtures("operator")


@pytest.fixture
def client(kube: Kube, monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setenv("KUBECONFIG", kube.environment["KUBECONFIG"])
    return Client(namespace=kube.namespace)


def job(name: str, code: int | None = 0, after: str = "1s", **spec: Any) -> YoloTrainingJob:
    """A job of two simulated workers that end with `code`, or do not end."""
    annotations = {} if code is None else {"devcluster/exit": str(code), "devcluster/exit-after": after}
    template = {
        "metadata": {"annotations": annotations},
        "spec": {"nodeSelector": {"type": "kwok"}, "tolerations": [{"operator": "Exists"}]},
    }
    document = minimal(name, **{"workers": {"replicas": 2, "template": template}, **spec})
    return manifest.parse(document)


def command(kube: Kube, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "yolojob.cli", *arguments, *(["-n", kube.namespace] if "-n" not in arguments else [])],
        env=kube.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )


def test_a_job_from_submission_to_its_end(client: Client) -> None:
    made = client.submit(job("first"))
    assert made.metadata.uid
    assert [j.metadata.name for j in client.list()] == ["first"]
    done = client.wait("first", 60)
    assert done.status is not None
    assert done.status.phase is JobPhase.SUCCEEDED
    assert client.get("first").status is not None
    assert client.get("first").status.phase is JobPhase.SUCCEEDED  # type: ignore[union-attr]
    assert any(e["reason"] == "Succeeded" for e in client.events("first")), client.events("first")
    client.delete("first")
    with pytest.raises(NotFound, match='"first" not found'):
        client.get("first")


def test_waiting_outlives_an_api_server_that_goes_away(
    client: Client, kube: Kube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours of waiting see upgrades of the control plane: the watch is cut, refused for a while, expired, and goes on."""
    with proxy(kube.kubeconfig, tmp_path) as (faulty, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        distant = Client(namespace=kube.namespace)
        client.submit(job("patient", after="8s"))
        ended: list[Any] = []
        waiting = threading.Thread(target=lambda: ended.append(distant.wait("patient", 90)))
        waiting.start()
        eventually(lambda: faulty.watches, "it watches")
        faulty.faults.away = True
        faulty.cut()
        eventually(lambda: faulty.faults.counts["away"] >= 2, "it tries to come back")
        faulty.faults.away, faulty.faults.broken = False, 410
        eventually(lambda: faulty.faults.counts["watch 410"], "it is told that it is too late")
        faulty.faults.broken = 0
        waiting.join(90)
        assert [j.status.phase for j in ended] == [JobPhase.SUCCEEDED]


def test_a_watch_tells_every_phase_in_order(client: Client) -> None:
    phases: list[str] = []

    def look() -> None:
        for change, seen in client.watch("watched", 60):
            assert change in ("ADDED", "MODIFIED")
            if seen.status and seen.status.phase.value not in phases[-1:]:
                phases.append(seen.status.phase.value)
            if phases[-1:] == ["Failed"]:
                return

    looking = threading.Thread(target=look)
    looking.start()
    client.submit(job("watched", 2))
    looking.join(60)
    assert phases[-1] == "Failed"
    assert "Running" in phases
    assert phases.index("Running") < phases.index("Failed")


def test_suspended_scaled_resumed(client: Client) -> None:
    client.submit(job("slow", None, runPolicy={"suspend": True}, train={"batch": 12}))
    with pytest.raises(TimeoutError, match="slow has not ended within 2 s"):
        client.wait("slow", 2)
    assert client.scale("slow", 3).spec.workers.replicas == 3
    assert client.resume("slow").spec.run_policy.suspend is False
    for _, seen in client.watch("slow", 60):
        if seen.status and seen.status.workers.ready == 3:
            break
    else:
        raise AssertionError("it never ran with 3 workers")
    with pytest.raises(ClusterError, match=r"spec\.elastic"):
        client.scale("slow", 2)
    with pytest.raises(ClusterError, match="worker 0: no log: "):  # a simulated pod has none
        list(client.logs("slow", 0))
    assert client.suspend("slow").spec.run_policy.suspend is True


def test_what_cannot_be_is_said_in_the_clusters_words(client: Client, kube: Kube, tmp_path: Path) -> None:
    client.submit(job("twice"))
    with pytest.raises(ClusterError, match='"twice" already exists'):
        client.submit(job("twice"))
    with pytest.raises(NotFound, match="has no pods now"):
        list(client.logs(client.submit(job("idle", runPolicy={"suspend": True})).metadata.name))
    with pytest.raises(ClusterError, match="no context 'elsewhere'"):
        Client(context="elsewhere")
    with pytest.raises(NotFound):
        client.delete("nobody")
    config = yaml.safe_load(Path(kube.environment["KUBECONFIG"]).read_text())
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    away = tmp_path / "away"
    away.write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [sys.executable, "-m", "yolojob.cli", "get"],
        env={**kube.environment, "KUBECONFIG": str(away)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "does not answer" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_verbs(kube: Kube, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job("verbs").to_json()))
    made = command(kube, "submit", str(path), "--watch")
    assert made.returncode == 0, made.stderr
    assert "verbs: submitted to namespace" in made.stdout
    assert "verbs: succeeded" in made.stdout
    listed = command(kube, "get")
    assert "NAME" in listed.stdout
    assert "verbs" in listed.stdout
    assert json.loads(command(kube, "get", "-o", "json").stdout)["items"][0]["metadata"]["name"] == "verbs"
    assert yaml.safe_load(command(kube, "get", "verbs", "-o", "yaml").stdout)["kind"] == "YoloTrainingJob"
    story = command(kube, "describe", "verbs").stdout
    assert "Conditions" in story
    assert "Succeeded" in story
    assert command(kube, "delete", "verbs").stdout == "verbs: deleted\n"
    gone = command(kube, "get", "verbs")
    assert gone.returncode == 2
    assert 'error: yolotrainingjobs.yolojob.dev "verbs" not found' in gone.stderr

    path.write_text(yaml.safe_dump(job("fails", 2).to_json()))
    command(kube, "submit", str(path))
    assert command(kube, "watch", "fails").returncode == 1
    path.write_text("kind: Nonsense\n")
    refused = command(kube, "submit", str(path))
    assert refused.returncode == 2
    assert "error: " in refused.stderr


def test_the_verbs_that_change_a_job_of_another_context(kube: Kube, tmp_path: Path) -> None:
    """The current context is somebody's else; `--context` names ours, with its own namespace."""
    config = yaml.safe_load(Path(kube.environment["KUBECONFIG"]).read_text())
    there = config["contexts"][0]["context"]
    config["contexts"] = [
        {"name": "ours", "context": {**there, "namespace": kube.namespace}},
        {"name": "theirs", "context": {**there, "namespace": "kube-public"}},
    ]
    config["current-context"] = "theirs"
    path = tmp_path / "config"
    path.write_text(yaml.safe_dump(config))
    there_is = tmp_path / "job.yaml"
    there_is.write_text(yaml.safe_dump(job("abroad", None, train={"batch": 12}).to_json()))

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(Path(sys.executable).parent / "yolojob"), *arguments],
            env={**kube.environment, "KUBECONFIG": str(path), **more},
            capture_output=True,
            text=True,
            check=False,
        )

    assert f"namespace {kube.namespace}" in run("submit", str(there_is), "--context", "ours").stdout
    assert run("suspend", "abroad").returncode == 2, "there is none in the current context"
    assert run("suspend", "abroad", "--context", "ours").stdout == "abroad: suspended\n"
    assert kube.get("ytj", "abroad")["spec"]["runPolicy"]["suspend"] is True
    assert run("scale", "abroad", "--replicas", "3", "--context", "ours").stdout == "abroad: scaled to 3\n"
    assert kube.get("ytj", "abroad")["spec"]["workers"]["replicas"] == 3
    assert run("resume", "abroad", "--context", "ours").stdout == "abroad: resumed\n"
    assert kube.get("ytj", "abroad")["spec"]["runPolicy"]["suspend"] is False
    eventually(lambda: len(kube.pods("abroad")) == 3, "its pods are there")
    log = run("logs", "abroad", "--worker", "1", "--context", "ours")
    assert (log.returncode, "error: worker 1: no log: " in log.stderr) == (2, True), "a simulated pod has none"
    bash = {"_TYPER_COMPLETE_ARGS": "yolojob get --context ours ab", "_YOLOJOB_COMPLETE": "complete_zsh"}
    assert "abroad" in run(**bash).stdout
    bash["_TYPER_COMPLETE_ARGS"] = "yolojob get --context th"
    assert "theirs" in run(**bash).stdout


def test_the_operator_is_needed_for_none_of_it(operator: Operator, client: Client) -> None:
    """Only the API server is asked: with the operator away, a job can be made, read and deleted."""
    operator.kill()
    try:
        client.submit(job("alone"))
        assert client.get("alone").metadata.name == "alone"
        client.delete("alone")
    finally:
        operator.start()
