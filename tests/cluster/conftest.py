"""The operator as a process of its own against a real API server; pods are played by kwok."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from kube import Kube, cluster
from support import eventually


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


class Operator:
    """The operator's process."""

    def __init__(self, kube: Kube, log: Path) -> None:
        self._kube, self.log = kube, log
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "yolojob_operator", "--namespace", self._kube.namespace]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--trainer-image", "trainer:test"], env=self._kube.environment, stdout=log, stderr=log
            )

    def kill(self) -> None:
        """As a crash: no last word."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> float:
        """As Kubernetes ends a pod; the seconds that it took."""
        began = time.monotonic()
        self._process.terminate()
        self._process.wait(30)
        return time.monotonic() - began


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
