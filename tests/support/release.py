"""Installs the operator in a cluster with its Helm chart."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

from support import ROOT
from support.kube import Kube, Object

ENFORCE = "pod-security.kubernetes.io/enforce"
"""Namespace label of the Pod Security level."""
HOME = "yolojob-system"
"""Namespace of the operator."""


@dataclass(frozen=True)
class Release:
    """One Helm release of the chart."""

    kube: Kube
    values: tuple[str, ...]

    def helm(self, *arguments: str) -> str:
        command = ["helm", *arguments, "--namespace", HOME]
        done = subprocess.run(command, env=self.kube.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def install(self, *more: str) -> None:
        """Installs the chart, or upgrades the release to other values."""
        chart = str(ROOT / "helm" / "yolojob")
        self.helm(
            "upgrade",
            "--install",
            "yolojob",
            chart,
            "--take-ownership",
            "--wait",
            "--timeout",
            "3m",
            # The nodes of the test cluster share one disk, which may be nearly full.
            "--set",
            "trainer.reservedDiskShare=0",
            *self.values,
            *more,
        )

    def pods(self) -> list[Object]:
        """Returns the operator's pods that are not being deleted."""
        home = Kube(self.kube.kubeconfig, HOME)
        pods = home.get("pods", "--selector", "app.kubernetes.io/name=yolojob-operator")["items"]
        return [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]

    def uninstall(self) -> None:
        self.helm("uninstall", "yolojob", "--wait")
