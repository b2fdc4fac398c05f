"""The choice of a cluster: files of KUBECONFIG, their contexts and namespaces. No cluster is contacted."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import kubeconfig

from yolojob.client import Client, ClusterError
from yolojob.client.kubeconfig import contexts


@pytest.mark.parametrize("current", [None, "gone"])
def test_client_with_named_context_ignores_the_current_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, current: str | None
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "config", current, good="there")))
    assert Client(context="good").namespace == "there"
    assert Client(context="good", namespace="here").namespace == "here"
    assert contexts() == ["good"]
    with pytest.raises(ClusterError, match=r"its contexts: good\. Select one with --context"):
        Client()


def test_client_merges_the_files_of_kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [kubeconfig(tmp_path / "a", "one", one="first"), kubeconfig(tmp_path / "b", None, two="second")]
    monkeypatch.setenv("KUBECONFIG", ":".join(map(str, files)))
    assert (Client().namespace, Client(context="two").namespace) == ("first", "second")


@pytest.mark.parametrize("text", ["", "[]", "a: [", "contexts: 5", "clusters: [{}]"])
def test_client_with_malformed_kubeconfig_raises_cluster_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(path))
    with pytest.raises(ClusterError, match=r"kubeconfig|no cluster"):
        Client()
    assert contexts() == []


def test_client_with_named_context_never_falls_back_to_the_pods_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a pod whose kubeconfig is missing: an error is better than the wrong cluster."""
    from kubernetes import config

    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "missing"))
    monkeypatch.setattr(config, "load_incluster_config", lambda **_: None)
    with pytest.raises(ClusterError, match="no cluster"):
        Client(context="production")
