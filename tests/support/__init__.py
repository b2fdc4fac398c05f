"""Helpers that several test files share."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml

T = TypeVar("T")
ROOT = Path(__file__).parent.parent.parent
EXAMPLES = sorted((ROOT / "manifests" / "examples").glob("*.yaml"))


def minimal(name: str = "digits", **spec: Any) -> dict[str, Any]:
    """Returns the smallest valid manifest, with the given fields of the spec added or replaced."""
    return {
        "apiVersion": "yolojob.dev/v1alpha1",
        "kind": "YoloTrainingJob",
        "metadata": {"name": name},
        "spec": {"model": {"name": "yolo11n.yaml"}, "dataset": {"uri": "builtin://digits"}, **spec},
    }


def kubeconfig(path: Path, current: str | None, server: str = "http://127.0.0.1:1", **spaces: str) -> Path:
    """Writes a kubeconfig with one context for each of `spaces` (context=namespace).

    Args:
        path: file to write.
        current: name of the current context; without one the file has no current context.
        server: address of the API server; no server listens at the default.
        spaces: namespaces by context.

    Returns:
        `path`.
    """
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


def eventually(look: Callable[[], T | None], what: str, seconds: float = 30.0, every: float = 0.1) -> T:
    """Polls until `look` returns something truthy.

    Args:
        look: called every `every` seconds.
        what: description of the condition, for the error message.
        seconds: deadline.
        every: seconds between two calls.

    Returns:
        The truthy value.

    Raises:
        AssertionError: the deadline has passed.
    """
    deadline = time.monotonic() + seconds
    while True:
        if value := look():
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not after {seconds:.0f} s: {what}")
        time.sleep(every)


def free_port() -> int:
    """Returns a port of the loopback interface that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
