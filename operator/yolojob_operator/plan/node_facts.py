"""Extracts from a node's API object the facts that the plan uses: GPUs, machine type, readiness. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from yolojob.api.fields import parse_quantity
from yolojob.api.spec import Gpu
from yolojob.catalogue import gpu_labels

INSTANCE_TYPE = "node.kubernetes.io/instance-type"
_SPOT = {
    "cloud.google.com/gke-spot": "true",
    "eks.amazonaws.com/capacityType": "SPOT",
    "karpenter.sh/capacity-type": "spot",
}
"""Labels with which platforms mark spot nodes."""
_KEPT_LABELS = {INSTANCE_TYPE, *_SPOT, *(name for names in gpu_labels.NODE_LABELS.values() for name in names)}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """What the plan uses of one node."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    """Only the labels that describe GPUs and the machine."""
    devices: Mapping[str, int] = field(default_factory=dict)
    """Allocatable extended resources, such as nvidia.com/gpu."""
    ready: bool = False
    """Whether its Ready condition is True."""
    since: datetime | None = None
    """The last transition of its Ready condition."""
    uid: str = ""
    version: int = 0
    """resourceVersion."""

    @property
    def machine(self) -> str:
        return self.labels.get(INSTANCE_TYPE, "")

    @property
    def spot(self) -> bool:
        return any(self.labels.get(label) == value for label, value in _SPOT.items())

    def offers(self, gpu: Gpu) -> bool:
        """Whether a worker that requests these GPUs could run here, if the node were empty."""
        if self.devices.get(gpu.resource, 0) < gpu.count:
            return False
        wanted = gpu_labels.labels(gpu.types)
        return not wanted or any(self.labels.get(label) in values for label, values in wanted.items())


def node_facts(body: Mapping[str, Any]) -> NodeFacts:
    """The facts of a node's API object."""
    metadata, status = body["metadata"], body.get("status") or {}
    labels = metadata.get("labels") or {}
    allocatable = status.get("allocatable") or {}
    ready: Mapping[str, Any] = next((c for c in status.get("conditions") or () if c["type"] == "Ready"), {})
    since = ready.get("lastTransitionTime")
    version = str(metadata.get("resourceVersion", ""))
    return NodeFacts(
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        version=int(version) if version.isdigit() else 0,
        labels={name: value for name, value in labels.items() if name in _KEPT_LABELS},
        devices={name: int(parse_quantity(n)) for name, n in allocatable.items() if "/" in name},
        ready=ready.get("status") == "True",
        since=datetime.fromisoformat(since) if since else None,
    )


def any_offers(nodes: Iterable[NodeFacts], gpu: Gpu) -> bool:
    """Whether any node has such GPUs, free or in use."""
    return any(node.offers(gpu) for node in nodes)
