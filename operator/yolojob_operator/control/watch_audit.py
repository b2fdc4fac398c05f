"""Compares periodic lists of all objects with what the watches delivered, to find missed deletions and stalled
watches.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import suppress

from yolojob.api import constants
from yolojob_operator.kube.api_client import ApiClient, ApiError
from yolojob_operator.kube.types import Key
from yolojob_operator.plan.node_facts import NodeFacts
from yolojob_operator.plan.pod_facts import PodFacts

log = logging.getLogger(__name__)

AUDIT_INTERVAL_SECONDS = 60.0
AUDIT_INTERVAL_SECONDS_PER_OBJECT = 0.06
"""Between two audits, whichever is longer. To list and compare one object takes 0.3 ms, so the audits take half a
percent of a CPU core for any number of objects."""
RECHECK_INTERVAL_SECONDS = 45.0
"""Until the next audit, if a list contained an object that no watch has shown. Usually the object was deleted before
the watch could show it, and the next list does not contain it."""
SETTLE_SECONDS = 1.0
"""A watch that restarts delivers many objects; the audit waits for this long, and counts them once."""

JobVersions = Mapping[str, tuple[Key, int]]
"""By uid: the job's key and its resourceVersion."""


class WatchAudit:
    """Compares lists with watches, at intervals and after every restart of a watch."""

    def __init__(
        self,
        api: ApiClient,
        namespaces: tuple[str, ...],
        jobs: Callable[[], JobVersions],
        pods: Callable[[], Iterable[tuple[Key, PodFacts]]],
        nodes: Callable[[], Mapping[str, NodeFacts] | None],
    ) -> None:
        """
        Args:
            api: the API client.
            namespaces: the watched namespaces; all if it is empty.
            jobs: the jobs that the watch has shown.
            pods: the pods that the watch has shown, each with its job.
            nodes: nodes by name; None if the operator may not list nodes.
        """
        self._api, self._namespaces = api, namespaces
        self._jobs, self._pods, self._nodes = jobs, pods, nodes
        self._watch_restarted = asyncio.Event()
        self.ghosts: set[str] = set()
        """uids of pods and nodes that are in the indices but no longer exist."""
        self._missed: dict[str, tuple[int, float]] = {}
        """By uid of an object that a list has shown and no watch: its version, and since when (monotonic clock)."""

    def watch_restarted(self) -> None:
        """A watch has restarted with a list: it does not report what was deleted in the meantime."""
        self._watch_restarted.set()

    def living_nodes(self) -> Mapping[str, NodeFacts] | None:
        """The nodes that exist; None if the operator may not list nodes."""
        nodes = self._nodes()
        if nodes is None or not self.ghosts:
            return nodes
        return {name: facts for name, facts in nodes.items() if facts.uid not in self.ghosts}

    def unseen(self) -> Iterator[float]:
        """For each object that a list has shown and no watch: since when; monotonic clock."""
        if self._missed:
            shown = self._shown()
            self._missed = {uid: m for uid, m in self._missed.items() if shown.get(uid, -1) < m[0]}
        return (since for _, since in self._missed.values())

    async def run(
        self,
        until_leader: Callable[[], Awaitable[None]],
        job_gone: Callable[[Key, str], None],
        pod_gone: Callable[[Key], None],
    ) -> None:
        """Audit in an endless loop.

        Args:
            until_leader: returns once this operator is the leader.
            job_gone: called with the key and the uid of each job that no longer exists.
            pod_gone: called with the job of each pod that no longer exists.
        """
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._watch_restarted.wait(), self._interval())
            await asyncio.sleep(SETTLE_SECONDS)
            self._watch_restarted.clear()
            await until_leader()
            # Taken before the lists are requested: an object that a watch shows meanwhile is not missing.
            jobs, pods = dict(self._jobs()), {facts.uid: key for key, facts in self._pods()}
            nodes = None if (known := self._nodes()) is None else {facts.uid for facts in known.values()}
            try:
                living_jobs = await self._api.versions(constants.KIND, self._namespaces)
                living_pods = await self._api.versions("Pod", self._namespaces)
                living_nodes = {} if nodes is None else await self._api.versions("Node", ())
            except ApiError as error:
                log.warning("the watches could not be audited: %s", error)
                continue
            for uid in jobs.keys() - living_jobs:
                job_gone(jobs[uid][0], uid)
            gone = pods.keys() - living_pods
            self.ghosts = gone | ((nodes or set()) - living_nodes.keys())
            for uid in gone:
                pod_gone(pods[uid])
            self.compare(living_jobs | living_pods | living_nodes)

    def compare(self, listed: Mapping[str, int]) -> None:
        """Note the objects that a list has shown and no watch.

        For a moment that is normal; after two minutes the watch is stalled.

        Args:
            listed: resourceVersion by uid.
        """
        shown, now = self._shown(), time.monotonic()
        missed: dict[str, tuple[int, float]] = {}
        for uid, version in listed.items():
            seen = shown.get(uid, -1)
            before, since = self._missed.get(uid, (version, now))
            if seen < before:
                missed[uid] = (before, since)
            elif seen < version:
                missed[uid] = (version, now)
        self._missed = missed

    def _interval(self) -> float:
        if self._missed:
            return RECHECK_INTERVAL_SECONDS
        return max(AUDIT_INTERVAL_SECONDS, AUDIT_INTERVAL_SECONDS_PER_OBJECT * len(self._shown()))

    def _shown(self) -> dict[str, int]:
        """resourceVersion by uid of all objects that the watches have shown."""
        shown = {uid: version for uid, (_, version) in self._jobs().items()}
        shown |= {facts.uid: facts.version for _, facts in self._pods()}
        return shown | {facts.uid: facts.version for facts in (self._nodes() or {}).values()}
