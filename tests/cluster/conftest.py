"""The operator as a process of its own against a real API server; pods are played by kwok."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from support import eventually
from support.kube import Kube, cluster
from support.operator_process import Operator


@pytest.fixture(scope="session")
def api() -> Iterator[Kube]:
    with cluster() as found:
        yield found


@pytest.fixture(scope="module")
def kube(api: Kube) -> Iterator[Kube]:
    """A namespace for each module."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    api.run("create", "namespace", name)
    yield Kube(api.kubeconfig, name)
    api.run("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="module")
def operator(kube: Kube, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    log = tmp_path_factory.mktemp("operator") / "log"
    running = Operator(kube, log)
    yield running
    running.stop()
    words = log.read_text()
    assert "Traceback" not in words, words


@pytest.fixture(autouse=True)
def clean(request: pytest.FixtureRequest) -> Iterator[None]:
    kube: Kube = request.getfixturevalue("kube")
    yield
    kube.run("delete", "yolotrainingjobs", "--all")
    pods = ("--selector", "yolojob.dev/job-name")
    eventually(lambda: not kube.get("pods", *pods).get("items"), "owner references clean up", seconds=60)
