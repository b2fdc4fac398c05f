"""Renders the chart with Helm: manifests/install.yaml with the defaults, and snapshots with other values.

The snapshots show the effect of a change of the chart to its reviewers.
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
WITHOUT_CRD_AND_DASHBOARDS = ("--set", "crds.install=false", "--set", "dashboards.enabled=false")
EVERYTHING = (
    "--api-versions",
    "monitoring.coreos.com/v1",
    "--set",
    "replicas=2",
)
VARIANTS = {
    "everything": (*EVERYTHING, *WITHOUT_CRD_AND_DASHBOARDS),
    "namespaced": ("--set", "watchNamespaces={team}", *WITHOUT_CRD_AND_DASHBOARDS),
    **{
        preset.stem: ("--values", str(preset), "--show-only", "templates/deployment.yaml")
        for preset in sorted((CHART / "presets").glob("*.yaml"))
    },
}
"""Helm's arguments by the name of the snapshot."""


def render(*arguments: str) -> str:
    """The rendered chart.

    Args:
        arguments: further arguments for Helm, which is the one on the path, or the test cluster's.
    """
    helm = shutil.which("helm") or str(settings.BIN / "helm")
    options = ["--namespace", NAMESPACE, "--kube-version", "1.35.0", "--skip-tests"]
    command = [helm, "template", "yolojob", str(CHART), *options, *arguments]
    return HEADER + subprocess.run(command, capture_output=True, text=True, check=True).stdout
