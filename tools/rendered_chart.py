"""The chart, rendered by Helm: with its default values, for people without Helm, and with others as snapshots, so that who
reviews a change of the chart sees what it does.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from devcluster import settings

CHART = Path(__file__).parent.parent / "helm" / "yolojob"
NAMESPACE = "yolojob-system"
HEADER = f"""\
# Generated from the chart by `make generate`. Do not edit.
#   kubectl apply --filename manifests/install.yaml
apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
"""
LEAN = ("--set", "crds.install=false", "--set", "dashboards.enabled=false")
EVERYTHING = (
    "--api-versions",
    "monitoring.coreos.com/v1",
    "--set",
    "replicas=2",
    "--set",
    "networkPolicy.enabled=true",
)
VARIANTS = {
    "everything": (*EVERYTHING, *LEAN),
    "namespaced": ("--set", "watchNamespaces={team}", *LEAN),
    **{
        preset.stem: ("--values", str(preset), "--show-only", "templates/deployment.yaml")
        for preset in sorted((CHART / "presets").glob("*.yaml"))
    },
}
"""Snapshots by name: arguments for Helm."""


def render(*arguments: str) -> str:
    """The chart, rendered by Helm (the one on the path, or the test cluster's) with further arguments."""
    helm = shutil.which("helm") or str(settings.BIN / "helm")
    where = ["--namespace", NAMESPACE, "--kube-version", "1.35.0", "--skip-tests"]
    command = [helm, "template", "yolojob", str(CHART), *where, *arguments]
    return HEADER + subprocess.run(command, capture_output=True, text=True, check=True).stdout
