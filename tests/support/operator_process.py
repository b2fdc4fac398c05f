"""The operator as a separate process."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from support.kube import Kube


class Operator:
    """An operator process and its HTTP endpoint."""

    def __init__(
        self, kube: Kube, log: Path, *, clusterwide: bool = False, kubeconfig: Path | None = None, also: str = ""
    ) -> None:
        """Start the operator.

        Args:
            kube: the cluster, and the namespace to watch.
            log: the file for its output.
            clusterwide: whether it watches all namespaces instead.
            kubeconfig: another kubeconfig, for example of a user with fewer rights.
            also: one more namespace to watch.
        """
        self.log, self.port = log, _free_port()
        self._environment = kube.environment | ({"KUBECONFIG": str(kubeconfig)} if kubeconfig else {})
        watched = [] if clusterwide else [kube.namespace, *([also] if also else [])]
        self._scope = [word for namespace in watched for word in ("--namespace", namespace)]
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "yolojob_operator", *self._scope, "--listen", f"127.0.0.1:{self.port}"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--trainer-image", "trainer:test"], env=self._environment, stdout=log, stderr=log
            )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, path: str) -> tuple[int, str]:
        """Status and body of a response of its HTTP server; status 0 while the server does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def value(self, name: str, **labels: str) -> float:
        """Sum of a metric's samples with these labels."""
        total = 0.0
        for family in text_string_to_metric_families(self.ask("/metrics")[1]):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    total += sample.value
        return total

    @property
    def leads(self) -> bool:
        return self.value("yolojob_leader") == 1

    def kill(self) -> None:
        """Kill the process, as in a crash: it cannot clean up."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> int:
        """Terminate the process as Kubernetes terminates a pod, with its grace period of 30 s; return the exit code."""
        self._process.terminate()
        return self._process.wait(30)


def _free_port() -> int:
    """A free TCP port below the ephemeral range, so that no connection takes it while the operator restarts."""
    for port in random.SystemRandom().sample(range(20_000, 30_000), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free TCP port")
