"""kubectl for tests, and the cluster against which they run."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest
import yaml
from devcluster import processes, settings

from support import ROOT, eventually
from support.locks import ClusterLocks, locked

Object = dict[str, Any]


@dataclass(frozen=True)
class Kube:
    """One namespace of one cluster."""

    kubeconfig: Path
    namespace: str = "default"

    @property
    def is_devcluster(self) -> bool:
        return self.kubeconfig == settings.KUBECONFIG

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables for processes that use this cluster."""
        path = f"{settings.BIN}:{os.environ['PATH']}" if self.is_devcluster else os.environ["PATH"]
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig), "PATH": path}

    def run(self, *arguments: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run kubectl in this namespace."""
        kubectl = shutil.which("kubectl", path=self.environment["PATH"])
        assert kubectl, "kubectl is not installed"
        command = [kubectl, "--namespace", self.namespace, *arguments]
        done = subprocess.run(command, env=self.environment, text=True, capture_output=True, check=False, **options)
        assert not check or done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}{done.stdout}"
        return done

    def get(self, *what: str) -> Object:
        """An object, or a list of them; empty if it does not exist."""
        done = self.run("get", *what, "--output", "json", check=False)
        return dict(json.loads(done.stdout)) if done.returncode == 0 and done.stdout else {}

    def create(self, document: Object, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run("create", "--filename", "-", input=json.dumps(document), check=check)

    def apply(self, *documents: Object) -> None:
        self.run("apply", "--filename", "-", input=yaml.safe_dump_all(documents))

    def pods(self, job: str) -> list[Object]:
        return list(self.get("pods", "--selector", f"yolojob.dev/job-name={job}").get("items", []))

    def status(self, job: str) -> Object:
        return dict(self.get("yolotrainingjob", job).get("status", {}))

    def condition(self, job: str, kind: str) -> Object:
        return next((c for c in self.status(job).get("conditions", []) if c["type"] == kind), {})

    def wait_for_crd(self, name: str) -> None:
        """Wait until the API server serves a custom resource.

        `kubectl wait --for=condition` fails on a new definition, whose conditions the API server stores as null.
        """

        def established() -> bool:
            conditions = self.get("customresourcedefinition", name).get("status", {}).get("conditions") or []
            return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)

        eventually(established, f"{name} is established", seconds=120)


def devcluster(*arguments: str, capture: bool = False) -> str:
    """Run a command of the test cluster; its output if it is captured."""
    done = subprocess.run(
        [sys.executable, "-m", "devcluster", *arguments],
        cwd=ROOT / "tests",
        text=True,
        check=True,
        stdout=subprocess.PIPE if capture else None,
    )
    return done.stdout or ""


def missing() -> str | None:
    """What this machine lacks for the test cluster; None if nothing."""
    if os.geteuid() != 0:
        return "root"
    if not shutil.which("apt-get"):
        return "Debian's packages (apt-get)"
    if not (settings.BIN / "kubelet").exists() and not shutil.which("go"):
        return "Go, to build Kubernetes with"
    return None


@contextmanager
def cluster() -> Iterator[Kube]:
    """The cluster that KUBECONFIG points to; otherwise the test cluster, which is started if it is down, and then
    stopped.

    Several test processes may call this at the same time: the first one starts the test cluster, the last one stops it.
    """
    given = os.environ.get("KUBECONFIG")
    if given and Path(given) != settings.KUBECONFIG:
        yield Kube(Path(given))
        return
    if lack := missing():
        reason = f"no cluster: KUBECONFIG is not set, and the test cluster needs {lack}"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    locks = ClusterLocks(settings.KUBECONFIG)
    with started(locks):
        kube = Kube(settings.KUBECONFIG)
        with locks.shared(["crd"]):  # two processes must not create it at once, nor replace an exclusive test's CRD
            kube.run("apply", "--filename", str(ROOT / "manifests" / "crd.yaml"))
            kube.wait_for_crd("yolotrainingjobs.yolojob.dev")
        yield kube


@contextmanager
def started(locks: ClusterLocks) -> Iterator[None]:
    """Start the test cluster unless it is up; stop it at the end if no other test process uses it and tests started
    it.
    """
    starting, started_by_tests = locks.path("starting"), locks.path("started-by-tests")
    with locks.path("users").open("a") as users:
        with locked(starting):
            fcntl.flock(users, fcntl.LOCK_SH)
            if processes.running("apiserver") is None:
                devcluster("up", "--nodes", "2", "--gpu-nodes", "4")
                started_by_tests.write_text(str(processes.running("apiserver")))
        try:
            yield
        finally:
            with locked(starting):
                fcntl.flock(users, fcntl.LOCK_UN)
                # The file of an earlier run that crashed names a process that is gone.
                mine = started_by_tests.exists() and started_by_tests.read_text() == str(processes.running("apiserver"))
                if mine and _is_last(users):
                    started_by_tests.unlink()
                    devcluster("down")


def _is_last(users: IO[str]) -> bool:
    """Whether no other process holds the shared lock on this file."""
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
