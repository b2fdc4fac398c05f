"""The commands for jobs of a cluster (`get`, `logs`, `submit` and others) as processes, against a fake API server."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import kubeconfig, minimal
from support.api_server import FakeApiServer
from support.cli import COMMAND

pytestmark = pytest.mark.processes


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApiServer]:
    """A running server that the kubeconfig points to."""
    server = FakeApiServer()
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "config", "first", server.url, first="default")))
    yield server
    server.stop()


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs one command."""
    return subprocess.run([*COMMAND, *arguments], text=True, capture_output=True, timeout=60, check=False, **options)


@pytest.mark.parametrize("command", ["delete", "get"])
def test_command_with_empty_name_sends_no_request(api: FakeApiServer, command: str) -> None:
    """As with an empty shell variable: `yolojob delete "$JOB"`."""
    api.add("a")
    done = run(command, "")
    assert done.returncode == 2
    assert "NAME: ''" in done.stderr
    assert api.requests == []


def test_logs_with_closed_pipe_ends_with_exit_code_141(api: FakeApiServer) -> None:
    api.add("a")
    api.pods = [0, 1]
    api.log = lambda pod: (200, b"x" * 100 + b"\n" + b"y" * 200_000)
    command = f"{shlex.join(COMMAND)} logs a | head -c 10; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], text=True, capture_output=True, timeout=60, check=False)
    assert done.stdout.endswith("141\n"), "exit code 1 would mean a failed training"
    assert done.stderr == ""


def test_watch_of_job_deleted_before_it_starts_is_an_error(api: FakeApiServer) -> None:
    api.add("a")
    api.on_list = api.jobs.clear
    done = run("watch", "a")
    assert (done.returncode, done.stderr.strip()) == (2, "error: a was deleted")


def test_submit_to_another_namespace_than_the_manifests_is_refused(api: FakeApiServer, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    job = minimal("a")
    job["metadata"]["namespace"] = "training"
    path.write_text(yaml.safe_dump(job))
    done = run("submit", str(path), "--namespace", "default")
    assert done.returncode == 2
    assert 'metadata.namespace is "training"' in done.stderr
    assert api.requests == []


def test_submit_leaves_other_objects_of_the_manifest_alone(api: FakeApiServer, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    claim = {"kind": "PersistentVolumeClaim", "metadata": {"name": "data"}}
    path.write_text(yaml.safe_dump_all([claim, minimal("a")]))
    done = run("submit", str(path))
    assert done.returncode == 0
    assert "PersistentVolumeClaim/data: not created; create it with `kubectl apply" in done.stderr


@pytest.mark.parametrize("command", [["get"], ["get", "a"], ["describe", "a"], ["logs", "a"], ["watch", "a"]])
def test_command_with_another_server_than_kubernetes_is_an_error(api: FakeApiServer, command: list[str]) -> None:
    api.raw = b"<html>Please log in</html>"
    done = run(*command)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "does not answer as a Kubernetes API server" in done.stderr


def test_get_with_full_disk_ends_with_exit_code_2(api: FakeApiServer) -> None:
    """Exit code 1 would mean a failed training."""
    api.add("a")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*COMMAND, "get"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


def test_get_with_output_name_prints_type_and_name(api: FakeApiServer) -> None:
    for name in ("a", "b"):
        api.add(name)
    assert run("get", "-o", "name").stdout.split() == [
        "yolotrainingjob.yolojob.dev/a",
        "yolotrainingjob.yolojob.dev/b",
    ]
    assert run("get", "a", "--output", "name").stdout.split() == ["yolotrainingjob.yolojob.dev/a"]
