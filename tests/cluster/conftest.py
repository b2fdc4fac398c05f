"""The operator as a separate process against a real API server; kwok simulates the pods.

The files are independent of each other, and several processes can run them at the same time against one API server,
each with its own namespaces. A test that changes something cluster-wide on which others rely is marked `exclusive`.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from support import eventually
from support.kube import Kube, cluster
from support.locks import ClusterLocks
from support.operator_process import Operator


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "exclusive(*resources): no other test runs at the same time; with names of resources, none that names one",
    )


@pytest.fixture(scope="session")
def api() -> Iterator[Kube]:
    with cluster() as running:
        yield running


@pytest.fixture(scope="module", autouse=True)
def module_lock(request: pytest.FixtureRequest, api: Kube) -> Iterator[bool]:
    """Holds the cluster alone for a module that is marked `exclusive`, its fixtures included. Its value: whether it
    does.
    """
    if request.node.get_closest_marker("exclusive") is None:
        yield False
        return
    with ClusterLocks(api.kubeconfig).exclusive():
        yield True


@pytest.fixture(autouse=True)
def cluster_lock(request: pytest.FixtureRequest, api: Kube, module_lock: bool) -> Iterator[None]:
    """Holds the cluster for a test: alone if the test is marked `exclusive`, otherwise beside others."""
    marks = list(request.node.iter_markers("exclusive"))
    locks = ClusterLocks(api.kubeconfig)
    if module_lock:
        yield
    elif any(not mark.args for mark in marks):
        with locks.exclusive():
            yield
    else:
        with locks.shared(resource for mark in marks for resource in mark.args):
            yield


@pytest.fixture(scope="module")
def kube(api: Kube, module_lock: bool) -> Iterator[Kube]:
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
    output = log.read_text()
    assert "Traceback" not in output, output


@pytest.fixture(autouse=True)
def clean(kube: Kube, cluster_lock: None) -> Iterator[None]:
    """Deletes the jobs of a test, and waits until their pods are gone."""
    yield
    kube.run("delete", "yolotrainingjobs", "--all")
    pods = ("--selector", "yolojob.dev/job-name")
    eventually(lambda: not kube.get("pods", *pods).get("items"), "owner references clean up", seconds=60)
