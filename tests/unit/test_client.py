"""`yolojob.client.Client` over HTTP, against a fake API server."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import kubeconfig, minimal
from support.api_server import FakeApiServer

from yolojob.api.errors import NotFound
from yolojob.api.job import YoloTrainingJob
from yolojob.client import Client, ClusterError

pytestmark = pytest.mark.processes


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApiServer]:
    """A running server that the kubeconfig points to."""
    server = FakeApiServer()
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "config", "first", server.url, first="default")))
    yield server
    server.stop()


class TestNames:
    @pytest.mark.parametrize("name", ["", ".", "..", "A", "a/b", "-a", "a b"])
    def test_client_with_invalid_job_name_sends_no_request(self, api: FakeApiServer, name: str) -> None:
        """In the path of a URL, an empty name or a dot means all jobs of the namespace."""
        api.add("a")
        client = Client()
        for method in (client.delete, client.get, client.suspend, client.events, lambda n: list(client.logs(n))):
            with pytest.raises(ClusterError, match="NAME: "):
                method(name)
        with pytest.raises(ClusterError, match="NAME: "):
            next(client.watch(name))
        assert api.requests == []

    @pytest.mark.parametrize("namespace", ["..", "a/b", "A"])
    def test_client_with_invalid_namespace_is_refused(self, api: FakeApiServer, namespace: str) -> None:
        with pytest.raises(ClusterError, match="namespace: "):
            Client(namespace=namespace)

    def test_client_with_two_current_contexts_takes_the_first_file(
        self, api: FakeApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """kubectl does the same: two tools used side by side must change the same cluster."""
        second = kubeconfig(tmp_path / "second", "second", second="default")
        monkeypatch.setenv("KUBECONFIG", f"{os.environ['KUBECONFIG']}:{second}")
        assert Client().list() == []
        assert len(api.requests) == 1


class TestUnreadableJobs:
    """Jobs stored by a newer version, or before a rule existed."""

    def test_list_with_unreadable_job_returns_the_others(
        self, api: FakeApiServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        api.add("broken", train={"epochs": "many"})
        api.add("newer")
        api.jobs["newer"]["status"]["mood"] = "good"
        with caplog.at_level(logging.WARNING):
            jobs = Client().list()
        assert [job.metadata.name for job in jobs] == ["newer"], "an unknown field of the status is no error"
        assert "broken cannot be read: spec.train.epochs" in caplog.text

    def test_get_of_unreadable_job_raises_cluster_error(self, api: FakeApiServer) -> None:
        api.add("broken", train={"epochs": "many"})
        with pytest.raises(ClusterError, match="broken cannot be read"):
            Client().get("broken")

    def test_watch_with_unreadable_job_reports_the_others(self, api: FakeApiServer) -> None:
        api.add("odd", train={"epochs": "many"})
        api.add("fine")
        assert next(Client().watch(seconds=5))[1].metadata.name == "fine"

    def test_client_accepts_unknown_fields_in_responses(self, api: FakeApiServer) -> None:
        created = Client().submit(YoloTrainingJob.model_validate(minimal("new")))
        assert created.metadata.name == "new"
        api.add("a")
        api.jobs["a"]["spec"]["workers"]["inventedLater"] = 1
        assert Client().suspend("a").spec.workers.replicas == 2


class TestWait:
    def test_wait_for_finished_job_returns_at_once(self, api: FakeApiServer) -> None:
        api.add("a", phase="Succeeded")
        assert Client().wait("a", seconds=0).metadata.name == "a"

    def test_wait_for_running_job_times_out(self, api: FakeApiServer) -> None:
        api.add("b")
        with pytest.raises(TimeoutError):
            Client().wait("b", seconds=0)

    def test_wait_for_job_deleted_before_the_watch_raises_not_found(self, api: FakeApiServer) -> None:
        """The first request finds the job; the list of the watch does not, and would report nothing."""
        api.add("gone")
        api.on_list = api.jobs.clear
        with pytest.raises(NotFound, match="gone was deleted"):
            Client().wait("gone")


def test_watch_after_expiry_reports_what_was_deleted_meanwhile(api: FakeApiServer) -> None:
    """Between two lists, job b is deleted, and job a is replaced by another one of the same name."""
    for name in ("a", "b", "c"):
        api.add(name)
    expired = {"type": "ERROR", "object": {"code": 410, "reason": "Expired", "message": "too old", "metadata": {}}}
    api.watch_events = lambda: [expired]
    changes: list[tuple[str, str | None]] = []
    lists = 0

    def on_list() -> None:
        nonlocal lists
        lists += 1
        if lists == 2:
            del api.jobs["b"]
            api.add("a", uid="another")

    api.on_list = on_list
    for change, job in Client().watch(seconds=10):
        changes.append((change, job.metadata.uid))
        if len(changes) == 7:
            break
    assert set(changes[:3]) == {("ADDED", f"uid-{name}") for name in "abc"}
    assert set(changes[3:5]) == {("DELETED", "uid-a"), ("DELETED", "uid-b")}
    assert set(changes[5:]) == {("ADDED", "another"), ("ADDED", "uid-c")}
