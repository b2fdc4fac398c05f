"""The client without a cluster: which one it means, and what it makes of what it is given."""

from __future__ import annotations

import io
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support import kubeconfig, minimal

from yolojob.api.job import YoloTrainingJob
from yolojob.api.status import Condition, ConditionType, YoloTrainingJobStatus
from yolojob.cli import job_view, live_view
from yolojob.client import Client, ClusterError
from yolojob.client import client as module
from yolojob.client.kubeconfig import contexts


class TestContext:
    @pytest.mark.parametrize("current", [None, "gone"])
    def test_the_named_one_counts_whatever_the_current_one_is(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, current: str | None
    ) -> None:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "config", current, good="there")))
        assert Client(context="good").namespace == "there"
        assert Client(context="good", namespace="here").namespace == "here"
        assert contexts() == ["good"]
        with pytest.raises(ClusterError, match=r"there is good\. Choose one with --context"):
            Client()

    def test_several_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        files = [kubeconfig(tmp_path / "a", "one", one="first"), kubeconfig(tmp_path / "b", None, two="second")]
        monkeypatch.setenv("KUBECONFIG", ":".join(map(str, files)))
        assert (Client().namespace, Client(context="two").namespace) == ("first", "second")

    @pytest.mark.parametrize("text", ["", "[]", "a: [", "contexts: 5", "clusters: [{}]"])
    def test_a_file_that_is_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
        path = tmp_path / "config"
        path.write_text(text)
        monkeypatch.setenv("KUBECONFIG", str(path))
        with pytest.raises(ClusterError, match=r"kubeconfig|no cluster"):
            Client()
        assert contexts() == []

    def test_no_pods_own_cluster_instead_of_the_one_that_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In a pod, with a kubeconfig that is not there: a wrong cluster is worse than none."""
        from kubernetes import config

        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "missing"))
        monkeypatch.setattr(config, "load_incluster_config", lambda **_: None)
        with pytest.raises(ClusterError, match="no cluster"):
            Client(context="production")


def body(name: str, **status: Any) -> dict[str, Any]:
    return {**minimal(name), "status": status}


class TestOddJobs:
    """Stored by a version that knows more, or before the rules were made."""

    BROKEN = minimal("broken", train={"epochs": "many"})

    @pytest.fixture
    def client(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "config", "good", good="there")))
        return Client()

    def test_one_does_not_hide_the_others(
        self, client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        newer = body("newer", phase="Running", mood="good")
        monkeypatch.setattr(client, "_call", lambda *_: {"items": [self.BROKEN, newer]})
        with caplog.at_level(logging.WARNING):
            found = client.list()
        assert [job.metadata.name for job in found] == ["newer"], "a field of the status that is news is no fault"
        assert "broken cannot be read: spec.train.epochs" in caplog.text

    def test_alone_it_is_an_error_in_words(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(client, "_call", lambda *_: self.BROKEN)
        with pytest.raises(ClusterError, match="broken cannot be read"):
            client.get("broken")


def told(message: str, width: int | None = None) -> str:
    now = datetime.now(UTC)
    condition = Condition(
        type=ConditionType.FAILED, status="True", reason="Failed", message=message, last_transition_time=now
    )
    job = YoloTrainingJob.model_validate(minimal("a-name-that-is-rather-long-for-a-column-of-a-terminal"))
    job.status = YoloTrainingJobStatus(conditions=[condition])
    out = io.StringIO()
    console = live_view.plain_console()
    console.file = out
    job_view.describe_job(job, [{"message": message, "reason": "[x]", "type": "Warning"}], console)
    job_view.show_jobs([job], console)
    return out.getvalue()


@pytest.mark.parametrize("message", ["[rank0]: RuntimeError", "[/data/images] not found", ":warning: [bold]x[/bold]"])
def test_brackets_are_words(message: str) -> None:
    assert told(message).count(message) >= 2


def test_a_pipe_cuts_nothing_off() -> None:
    name = "a-name-that-is-rather-long-for-a-column-of-a-terminal"
    last = told("long " * 50).splitlines()[-1]
    assert last.startswith(name)
    assert not Console(file=io.StringIO()).is_terminal
    assert "…" not in last


def test_a_worker_that_there_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "config", "good", good="there")))
    client = Client()
    monkeypatch.setattr(client, "_call", lambda *_: minimal("two", workers={"replicas": 2}))
    with pytest.raises(module.NotFound, match="no worker 7: there are 2, from 0 to 1"):
        list(client.logs("two", 7))


def test_waiting_for_a_job_that_goes_in_the_meantime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was there when it was asked for, and is not when the watch begins, which would tell of nothing."""
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "config", "good", good="there")))
    client = Client()

    class Gone:
        def get_namespaced_custom_object(self, *_: Any, **__: Any) -> dict[str, Any]:
            return body("gone", phase="Running")

        def list_namespaced_custom_object(self, *_: Any, **__: Any) -> dict[str, Any]:
            return {"items": [], "metadata": {"resourceVersion": "7"}}

    monkeypatch.setattr(client, "_objects", Gone())
    with pytest.raises(module.NotFound, match="gone was deleted"):
        client.wait("gone")
