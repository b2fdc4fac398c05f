"""`manifests/install.yaml`: the chart with its default values, for people without Helm. Prints it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from devcluster import settings

NAMESPACE = "yolojob-system"
HEADER = f"""\
# Generated from the chart by `make generate`. Do not edit.
#   kubectl apply --filename manifests/install.yaml
apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
"""


def render(*arguments: str) -> str:
    """The chart, rendered by Helm (the one on the path, or the test cluster's) with further arguments."""
    helm = shutil.which("helm") or str(settings.BIN / "helm")
    chart = Path(__file__).parent.parent / "helm" / "yolojob"
    command = [
        helm,
        "template",
        "yolojob",
        str(chart),
        "--namespace",
        NAMESPACE,
        "--kube-version",
        "1.35.0",
        *arguments,
    ]
    return HEADER + subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    print(render(), end="")
