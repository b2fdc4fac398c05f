"""Jobs whose pods kwok simulates, and their status."""

from __future__ import annotations

import json
import time
from typing import Any

from support import eventually, minimal
from support.kube import Kube


def job(
    name: str, code: int | None = None, after: str = "1s", message: str = "", replicas: int = 2, **spec: Any
) -> dict[str, Any]:
    """A job on simulated nodes whose workers exit with `code` after a duration; they keep running if it is None."""
    annotations = {} if code is None else {"devcluster/exit": str(code), "devcluster/exit-after": after}
    if message:
        annotations["devcluster/message"] = message
    template = {
        "metadata": {"annotations": annotations},
        "spec": {"nodeSelector": {"type": "kwok"}, "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}]},
    }
    return minimal(
        name, **{"workers": {"replicas": replicas, "template": template}, "storage": {"uri": "s3://bucket/x"}, **spec}
    )


def phase(kube: Kube, name: str, wanted: str, seconds: float = 30) -> dict[str, Any]:
    """Wait for this phase of a job; returns its status."""

    def look() -> dict[str, Any]:
        status = kube.status(name)
        return status if status.get("phase") == wanted else {}

    try:
        return eventually(look, f"{name} is {wanted}", seconds=seconds)
    except AssertionError as error:
        raise AssertionError(f"{error}: {json.dumps(kube.status(name), indent=1)}") from None


def let_pass(seconds: float) -> None:
    """Keep a state, for example an outage, for a duration that the test is about. Never a way to wait for a result."""
    end = time.monotonic() + seconds
    eventually(lambda: time.monotonic() >= end, f"{seconds} s have passed", seconds=seconds + 60)


def attempts(kube: Kube, name: str) -> set[str]:
    """The attempts to which a job's pods belong."""
    return {p["metadata"]["labels"]["yolojob.dev/attempt"] for p in kube.pods(name)}


def edit(kube: Kube, name: str, **spec: Any) -> None:
    """Change a job's spec."""
    kube.run("patch", "yolotrainingjob", name, "--type=merge", "--patch", json.dumps({"spec": spec}))


def suspend(kube: Kube, name: str, on: bool) -> None:
    """Suspend or resume a job."""
    edit(kube, name, runPolicy={"suspend": on})
