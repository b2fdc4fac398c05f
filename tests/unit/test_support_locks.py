"""The locks between test processes, and the test cluster that these start and stop."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest
from devcluster import processes
from support import kube
from support.locks import ClusterLocks


@pytest.fixture
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClusterLocks:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return ClusterLocks(tmp_path / "kubeconfig")


def is_free(path: Path, *, shared: bool = False) -> bool:
    """Whether another process could take this lock now. Every open file counts as another process."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_shared_lock_allows_other_tests_but_none_that_is_exclusive(locks: ClusterLocks) -> None:
    with locks.shared(), locks.shared():
        assert is_free(locks.path("cluster"), shared=True)
        assert not is_free(locks.path("cluster"))
        assert is_free(locks.path("entry")), "later tests may start"
    assert is_free(locks.path("cluster"))


def test_exclusive_lock_allows_no_other_test(locks: ClusterLocks) -> None:
    with locks.exclusive():
        assert not is_free(locks.path("cluster"), shared=True)
        assert is_free(locks.path("entry")), "later tests may wait for the cluster"
    assert is_free(locks.path("cluster"))


def test_shared_lock_with_a_resource_holds_the_resource_alone(locks: ClusterLocks) -> None:
    with locks.shared(["gpu-nodes"]):
        assert not is_free(locks.path("resource-gpu-nodes"))
        with locks.shared(["pod-group-crds"]):
            assert not is_free(locks.path("resource-pod-group-crds"))
    assert is_free(locks.path("resource-gpu-nodes"))


class FakeCluster:
    """A test cluster that only counts its starts and stops."""

    def __init__(self) -> None:
        self.commands: list[str] = []
        self.pid: int | None = None

    def devcluster(self, command: str, *_: str) -> None:
        self.commands.append(command)
        self.pid = 42 if command == "up" else None

    def running(self, _: str) -> int | None:
        return self.pid


@pytest.fixture
def fake_cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    fake = FakeCluster()
    monkeypatch.setattr(kube, "devcluster", fake.devcluster)
    monkeypatch.setattr(processes, "running", fake.running)
    return fake


def test_cluster_started_by_the_first_user_is_stopped_by_the_last(
    locks: ClusterLocks, fake_cluster: FakeCluster
) -> None:
    with kube.started(locks):
        with kube.started(locks):
            assert fake_cluster.commands == ["up"]
        assert fake_cluster.commands == ["up"], "the first user still needs it"
    assert fake_cluster.commands == ["up", "down"]


def test_cluster_that_was_running_before_is_not_stopped(locks: ClusterLocks, fake_cluster: FakeCluster) -> None:
    fake_cluster.pid = 7
    locks.path("started-by-tests").write_text("42")  # left by an earlier run that crashed
    with kube.started(locks):
        pass
    assert fake_cluster.commands == []
