"""Logs of a job's pods through `Client.logs`, against a fake API server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import eventually, kubeconfig
from support.api_server import PODS, FakeApiServer

from yolojob.api.errors import NotFound
from yolojob.client import Client, ClusterError

pytestmark = pytest.mark.processes


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApiServer]:
    """A running server that the kubeconfig points to."""
    server = FakeApiServer()
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "config", "first", server.url, first="default")))
    yield server
    server.stop()


def test_logs_returns_the_lines_of_all_workers(api: FakeApiServer) -> None:
    api.add("a")
    api.pods = [0, 1]
    lines = sorted(Client().logs("a"))
    assert lines == [(0, "a-worker-0 starts"), (0, "ends"), (1, "a-worker-1 starts"), (1, "ends")]


def test_logs_with_follow_waits_until_all_pods_have_started(
    api: FakeApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No pod, then one of two pods, then pods without a node, then pods whose container is being created."""
    monkeypatch.setattr("yolojob.client.pod_logs.POLL_INTERVAL_SECONDS", 0.0)
    api.add("a", phase="Pending")
    not_started = iter([(204, b""), (400, b'container "trainer" is waiting to start: ContainerCreating')] * 2)
    api.log = lambda pod: next(not_started, (200, f"{pod} starts\n".encode()))
    lines: list[tuple[int, str]] = []
    reading = threading.Thread(target=lambda: lines.extend(Client().logs("a", follow=True)), daemon=True)
    reading.start()
    eventually(lambda: sum(path.startswith(PODS) for _, path in api.requests) >= 2, "the client polls for pods")
    api.pods = [0]
    before = len(api.requests)
    eventually(lambda: len(api.requests) > before + 3, "the client polls again")
    assert not any("/log" in path for _, path in api.requests), "one pod of two is not enough"
    api.pods = [0, 1]
    reading.join(10)
    assert sorted(lines) == [(0, "a-worker-0 starts"), (1, "a-worker-1 starts")]


def test_logs_with_follow_reports_image_that_cannot_be_pulled(api: FakeApiServer) -> None:
    api.add("a", phase="Pending")
    api.pods = [0, 1]
    message = b'container "trainer" is waiting to start: trying and failing to pull image'
    api.log = lambda pod: (400, message) if pod.endswith("0") else (200, b"here\n")
    with pytest.raises(ClusterError, match=r"worker 0: no log: .*failing to pull image"):
        list(Client().logs("a", follow=True))


def test_logs_of_failed_job_without_pods_raises_not_found(api: FakeApiServer) -> None:
    api.add("a", phase="Failed")
    with pytest.raises(NotFound, match="a has no pods now"):
        list(Client().logs("a", follow=True))


def test_logs_of_unknown_worker_names_the_range(api: FakeApiServer) -> None:
    api.add("two")
    with pytest.raises(NotFound, match="no worker 7: there are 2, from 0 to 1"):
        list(Client().logs("two", 7))
