"""The example job under other names, and functions that wait for its progress."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from support import ROOT, eventually
from support.kube import Kube

EXAMPLES = ROOT / "manifests" / "examples"
EXAMPLE = EXAMPLES / "digits.yaml"


def documents(name: str, example: Path = EXAMPLE, **train: Any) -> list[dict[str, Any]]:
    """Returns an example job and its volume claim, renamed, with `train` added to the training settings."""
    job, claim = list(yaml.safe_load_all(example.read_text()))
    job["metadata"]["name"] = claim["metadata"]["name"] = name
    job["spec"]["storage"]["uri"] = f"pvc://{name}"
    job["spec"]["train"] |= train
    return [job, claim]


@dataclass
class Pace:
    """How fast this machine trains the example; the first test of the training jobs measures it."""

    epoch_seconds: float = 5.0

    def epochs(self, seconds: float) -> int:
        """Returns the number of epochs that take about this long, so that an event falls into the training."""
        return max(round(seconds / self.epoch_seconds), 12)


def training(kube: Kube, job: str, epoch: int) -> dict[str, Any]:
    """Waits until a running job has trained `epoch` epochs, and returns its status."""

    def look() -> dict[str, Any] | None:
        status = kube.status(job)
        assert status.get("phase") not in ("Failed", "Succeeded"), json.dumps(status, indent=1)
        return status if status.get("progress", {}).get("epoch", 0) >= epoch and status["phase"] == "Running" else None

    return eventually(look, f"{job} has trained {epoch} epochs", seconds=600, every=0.5)


def finished(kube: Kube, job: str, seconds: float = 900) -> dict[str, Any]:
    """Waits until a job has succeeded or failed, and returns its status."""

    def look() -> dict[str, Any] | None:
        status = kube.status(job)
        return status if status.get("phase") in ("Succeeded", "Failed") else None

    return eventually(look, f"{job} has ended", seconds=seconds, every=0.5)
