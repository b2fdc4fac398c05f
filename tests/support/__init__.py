"""What several tests share."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml

T = TypeVar("T")
ROOT = Path(__file__).parent.parent.parent
EXAMPLES = sorted((ROOT / "manifests" / "examples").glob("*.yaml"))


def minimal(name: str = "digits", **spec: Any) -> dict[str, Any]:
    """The smallest manifest, with other parts of the spec as asked for."""
    return {
        "apiVersion": "yolojob.dev/v1alpha1",
        "kind": "YoloTrainingJob",
        "metadata": {"name": name},
        "spec": {"model": {"name": "yolo11n.yaml"}, "dataset": {"uri": "builtin://digits"}, **spec},
    }


def kubeconfig(path: Path, current: str | None, server: str = "http://127.0.0.1:1", **spaces: str) -> Path:
    """A kubeconfig with a context for each namespace; nobody is at the server unless one is given."""
    content: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [
            {"name": name, "context": {"cluster": "c", "user": "u", "namespace": space}}
            for name, space in spaces.items()
        ],
    }
    if current is not None:
        content["current-context"] = current
    path.write_text(yaml.safe_dump(content))
    return path


def eventually(look: Callable[[], T], what: str, seconds: float = 30.0, every: float = 0.1) -> T:
    """The first truthy answer, within a deadline."""
    deadline = time.monotonic() + seconds
    while True:
        if answer := look():
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not after {seconds:.0f} s: {what}")
        time.sleep(every)
