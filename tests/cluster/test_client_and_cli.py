"""The client and the commands of the CLI, against a real API server and the operator."""

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
    """A job of two simulated workers that exit with `code`; they keep running if it is None."""
    annotations = {} if code is None else {"devcluster/exit": str(code), "devcluster/exit-after": after}
    template = {
        "metadata": {"annotations": annotations},
        "spec": {"nodeSelector": {"type": "kwok"}, "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}]},
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


def test_client_submits_waits_for_and_deletes_a_job(client: Client) -> None:
    submitted = client.submit(job("first"))
    assert submitted.metadata.uid
    assert [j.metadata.name for j in client.list()] == ["first"]
    done = client.wait("first", 60)
    assert done.status is not None
    assert done.status.phase is JobPhase.SUCCEEDED
    stored = client.get("first").status
    assert stored is not None
    assert stored.phase is JobPhase.SUCCEEDED
    assert any(e["reason"] == "Succeeded" for e in client.events("first")), client.events("first")
    client.delete("first")
    with pytest.raises(NotFound, match='"first" not found'):
        client.get("first")


def test_wait_survives_an_outage_of_the_api_server(
    client: Client, kube: Kube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """During hours of waiting the control plane may be upgraded: the watch is closed, refused, expired, and
    continues.
    """
    with proxy(kube.kubeconfig, tmp_path) as (faulty, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        distant = Client(namespace=kube.namespace)
        client.submit(job("patient", after="8s"))
        ended: list[Any] = []
        waiting = threading.Thread(target=lambda: ended.append(distant.wait("patient", 90)))
        waiting.start()
        eventually(lambda: faulty.watches, "the client watches")
        faulty.faults.away = True
        faulty.cut()
        eventually(lambda: faulty.faults.counts["away"] >= 2, "the client reconnects")
        faulty.faults.away, faulty.faults.broken = False, 410
        eventually(lambda: faulty.faults.counts["watch 410"], "the watch is expired")
        faulty.faults.broken = 0
        waiting.join(90)
        assert [j.status.phase for j in ended] == [JobPhase.SUCCEEDED]


def test_watch_yields_every_phase_in_order(client: Client) -> None:
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


def test_client_suspends_scales_and_resumes_a_job(client: Client) -> None:
    client.submit(job("slow", None, runPolicy={"suspend": True}, train={"batch": 12}))
    with pytest.raises(TimeoutError, match="slow has not ended within 2 s"):
        client.wait("slow", 2)
    assert client.scale("slow", 3).spec.workers.replicas == 3
    assert client.resume("slow").spec.run_policy.suspend is False
    for _, seen in client.watch("slow", 60):
        if seen.status and seen.status.workers.ready == 3:
            break
    else:
        raise AssertionError("the job never ran with 3 workers")
    with pytest.raises(ClusterError, match=r"spec\.elastic"):
        client.scale("slow", 2)
    with pytest.raises(ClusterError, match="worker 0: no log: "):  # a simulated pod has none
        list(client.logs("slow", 0))
    assert client.suspend("slow").spec.run_policy.suspend is True


def test_client_errors_have_the_message_of_the_api_server(client: Client, kube: Kube, tmp_path: Path) -> None:
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
    unreachable = tmp_path / "unreachable"
    unreachable.write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [sys.executable, "-m", "yolojob.cli", "get"],
        env={**kube.environment, "KUBECONFIG": str(unreachable)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "does not answer" in done.stderr
    assert "Traceback" not in done.stderr


def test_cli_submits_lists_describes_and_deletes_a_job(kube: Kube, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job("commands").to_json()))
    submitted = command(kube, "submit", str(path), "--watch")
    assert submitted.returncode == 0, submitted.stderr
    assert "commands: submitted to namespace" in submitted.stdout
    assert "commands: succeeded" in submitted.stdout
    listed = command(kube, "get")
    assert "NAME" in listed.stdout
    assert "commands" in listed.stdout
    assert json.loads(command(kube, "get", "-o", "json").stdout)["items"][0]["metadata"]["name"] == "commands"
    assert yaml.safe_load(command(kube, "get", "commands", "-o", "yaml").stdout)["kind"] == "YoloTrainingJob"
    description = command(kube, "describe", "commands").stdout
    assert "Conditions" in description
    assert "Succeeded" in description
    assert command(kube, "delete", "commands").stdout == "commands: deleted\n"
    gone = command(kube, "get", "commands")
    assert gone.returncode == 2
    assert 'error: yolotrainingjobs.yolojob.dev "commands" not found' in gone.stderr

    path.write_text(yaml.safe_dump(job("fails", 2).to_json()))
    command(kube, "submit", str(path))
    assert command(kube, "watch", "fails").returncode == 1
    path.write_text("kind: Nonsense\n")
    refused = command(kube, "submit", str(path))
    assert refused.returncode == 2
    assert "error: " in refused.stderr


def test_cli_with_another_context_changes_jobs_in_its_namespace(kube: Kube, tmp_path: Path) -> None:
    """The current context is another one; `--context` selects one with the namespace of this test."""
    config = yaml.safe_load(Path(kube.environment["KUBECONFIG"]).read_text())
    context = config["contexts"][0]["context"]
    config["contexts"] = [
        {"name": "ours", "context": {**context, "namespace": kube.namespace}},
        {"name": "theirs", "context": {**context, "namespace": "kube-public"}},
    ]
    config["current-context"] = "theirs"
    path = tmp_path / "config"
    path.write_text(yaml.safe_dump(config))
    manifest_path = tmp_path / "job.yaml"
    manifest_path.write_text(yaml.safe_dump(job("abroad", None, train={"batch": 12}).to_json()))

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(Path(sys.executable).parent / "yolojob"), *arguments],
            env={**kube.environment, "KUBECONFIG": str(path), **more},
            capture_output=True,
            text=True,
            check=False,
        )

    assert f"namespace {kube.namespace}" in run("submit", str(manifest_path), "--context", "ours").stdout
    assert run("suspend", "abroad").returncode == 2, "the current context has no such job"
    assert run("suspend", "abroad", "--context", "ours").stdout == "abroad: suspended\n"
    assert kube.get("ytj", "abroad")["spec"]["runPolicy"]["suspend"] is True
    assert run("scale", "abroad", "--replicas", "3", "--context", "ours").stdout == "abroad: scaled to 3\n"
    assert kube.get("ytj", "abroad")["spec"]["workers"]["replicas"] == 3
    assert run("resume", "abroad", "--context", "ours").stdout == "abroad: resumed\n"
    assert kube.get("ytj", "abroad")["spec"]["runPolicy"]["suspend"] is False
    eventually(lambda: len(kube.pods("abroad")) == 3, "its pods exist")
    log = run("logs", "abroad", "--worker", "1", "--context", "ours")
    assert (log.returncode, "error: worker 1: no log: " in log.stderr) == (2, True), "a simulated pod has none"
    bash = {"_TYPER_COMPLETE_ARGS": "yolojob get --context ours ab", "_YOLOJOB_COMPLETE": "complete_zsh"}
    assert "abroad" in run(**bash).stdout
    bash["_TYPER_COMPLETE_ARGS"] = "yolojob get --context th"
    assert "theirs" in run(**bash).stdout


def test_client_without_a_running_operator_creates_reads_and_deletes_jobs(operator: Operator, client: Client) -> None:
    """The client needs only the API server."""
    operator.kill()
    try:
        client.submit(job("alone"))
        assert client.get("alone").metadata.name == "alone"
        client.delete("alone")
    finally:
        operator.start()
