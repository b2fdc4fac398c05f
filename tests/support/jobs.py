"""Jobs whose pods are played by kwok, and what becomes of them."""

from __future__ import annotations

import json
from typing import Any

from support import eventually, minimal
from support.kube import Kube


def job(
    name: str, code: int | None = None, after: str = "1s", message: str = "", replicas: int = 2, **spec: Any
) -> dict[str, Any]:
    """A job on simulated nodes whose workers end with `code`."""
    annotations = {} if code is None else {"devcluster/exit": str(code), "devcluster/exit-after": after}
    if message:
        annotations["devcluster/message"] = message
    template = {
        "metadata": {"annotations": annotations},
        "spec": {"nodeSelector": {"type": "kwok"}, "tolerations": [{"operator": "Exists"}]},
    }
    return minimal(
        name, **{"workers": {"replicas": replicas, "template": template}, "storage": {"uri": "s3://bucket/x"}, **spec}
    )


def phase(kube: Kube, name: str, wanted: str, seconds: float = 30) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        status = kube.status(name)
        return status if status.get("phase") == wanted else None

    try:
        return eventually(look, f"{name} is {wanted}", seconds=seconds)  # type: ignore[return-value]
    except AssertionError as error:
        raise AssertionError(f"{error}: {json.dumps(kube.status(name), indent=1)}") from None


def attempts(kube: Kube, name: str) -> set[str]:
    return {p["metadata"]["labels"]["yolojob.dev/attempt"] for p in kube.pods(name)}


def edit(kube: Kube, name: str, **spec: Any) -> None:
    """Change a job's spec."""
    kube.run("patch", "yolotrainingjob", name, "--type=merge", "--patch", json.dumps({"spec": spec}))


def suspend(kube: Kube, name: str, on: bool) -> None:
    """Suspend a job, or let it go on."""
    edit(kube, name, runPolicy={"suspend": on})
