"""Reads kopf's in-memory indices: the pods by job, and the nodes by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from yolojob_operator.kube.types import Key
from yolojob_operator.plan.node_facts import NodeFacts
from yolojob_operator.plan.pod_facts import PodFacts


@dataclass
class Indices:
    """The indices that kopf passes to every handler. Handlers run only once the indices contain all objects.

    A mutable holder, because kopf gives each object its own shallow copy of the memo.
    """

    clusterwide: bool
    """Whether the operator watches all namespaces, and the nodes."""
    pods_by_job: Mapping[Key, Iterable[PodFacts]] = field(default_factory=dict)
    nodes_by_name: Mapping[str, Iterable[NodeFacts]] = field(default_factory=dict)

    def update(self, handler_arguments: Mapping[str, Any]) -> None:
        """Keep the indices from the keyword arguments of a handler."""
        self.pods_by_job = handler_arguments["pods"]
        self.nodes_by_name = handler_arguments.get("nodes", {})

    def pods(self, key: Key) -> list[PodFacts]:
        return list(self.pods_by_job.get(key, ()))

    def all_pods(self) -> Iterator[tuple[Key, PodFacts]]:
        return ((key, facts) for key, entry in self.pods_by_job.items() for facts in entry)

    def nodes(self) -> Mapping[str, NodeFacts] | None:
        """Nodes by name; None if the operator may not list nodes."""
        return Nodes(self.nodes_by_name) if self.clusterwide else None


class Nodes(Mapping[str, NodeFacts]):
    """Nodes by name, read from kopf's index."""

    def __init__(self, index: Mapping[str, Iterable[NodeFacts]]) -> None:
        self._index = index

    def __getitem__(self, name: str) -> NodeFacts:
        # A node that was deleted while no watch was open, and created again, is in the index twice.
        return max(self._index[name], key=lambda facts: facts.version)

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)
