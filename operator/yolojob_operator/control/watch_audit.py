"""What is there by the API server's lists, beside what the watches have shown: ghosts, and deaf watches."""

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
"""Between two counts, whichever is longer. To list an object and look at it takes 0.3 ms: half a percent of a core, however
many there are."""
RECHECK_INTERVAL_SECONDS = 45.0
"""Before another count, while a list has shown what no watch has: mostly it went before the watch could show it, and the next
list does not have it any more."""
SETTLE_SECONDS = 1.0
"""A watch that begins anew brings many objects, and is counted once."""

JobVersions = Mapping[str, tuple[Key, int]]
"""By uid: the job's key and its resourceVersion."""


class WatchAudit:
    """Counts what lives, now and then, and whenever a watch has begun anew."""

    def __init__(
        self,
        cluster: ApiClient,
        namespaces: tuple[str, ...],
        jobs: Callable[[], JobVersions],
        pods: Callable[[], Iterable[tuple[Key, PodFacts]]],
        nodes: Callable[[], Mapping[str, NodeFacts] | None],
    ) -> None:
        """
        Args:
            cluster: the API server.
            namespaces: where the jobs are; everywhere, where there are none.
            jobs: those that the watch has shown.
            pods: facts of the pods that it has shown, each with its job.
            nodes: facts of all nodes by name; none where they may not be seen.
        """
        self._api, self._namespaces = cluster, namespaces
        self._jobs, self._pods, self._nodes = jobs, pods, nodes
        self._watch_restarted = asyncio.Event()
        self.ghosts: set[str] = set()
        """uids of pods and nodes that the indices have, and that are gone."""
        self._missed: dict[str, tuple[int, float]] = {}
        """uids of objects that a list has shown and no watch: in which version, and since when."""

    def watch_restarted(self) -> None:
        """A watch has begun by listing: what was deleted meanwhile is not told."""
        self._watch_restarted.set()

    def living_nodes(self) -> Mapping[str, NodeFacts] | None:
        """Facts of the nodes that are there; none where they may not be seen."""
        nodes = self._nodes()
        if nodes is None or not self.ghosts:
            return nodes
        return {name: facts for name, facts in nodes.items() if facts.uid not in self.ghosts}

    def unseen(self) -> Iterator[float]:
        """Since when lists have shown what no watch has shown yet."""
        if self._missed:
            shown = self._shown()
            self._missed = {uid: m for uid, m in self._missed.items() if shown.get(uid, -1) < m[0]}
        return (since for _, since in self._missed.values())

    async def take(
        self, turn: Callable[[], Awaitable[None]], job_gone: Callable[[Key, str], None], pod_gone: Callable[[Key], None]
    ) -> None:
        """Count for ever.

        Args:
            turn: returns when it is on us to count.
            job_gone: told of each job that is no more: its key and its uid.
            pod_gone: told of the job of each pod that is no more.
        """
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._watch_restarted.wait(), self._pause())
            await asyncio.sleep(SETTLE_SECONDS)
            self._watch_restarted.clear()
            await turn()
            # What the watches show while the lists are on their way is no ghost.
            jobs, pods = dict(self._jobs()), {facts.uid: key for key, facts in self._pods()}
            nodes = None if (known := self._nodes()) is None else {facts.uid for facts in known.values()}
            try:
                living_jobs = await self._api.versions(constants.KIND, self._namespaces)
                living_pods = await self._api.versions("Pod", self._namespaces)
                living_nodes = {} if nodes is None else await self._api.versions("Node", ())
            except ApiError as error:
                log.warning("what is gone could not be found out: %s", error)
                continue
            for uid in jobs.keys() - living_jobs:
                job_gone(jobs[uid][0], uid)
            gone = pods.keys() - living_pods
            self.ghosts = gone | ((nodes or set()) - living_nodes.keys())
            for uid in gone:
                pod_gone(pods[uid])
            self.compare(living_jobs | living_pods | living_nodes)

    def compare(self, listed: Mapping[str, int]) -> None:
        """Note what a list has shown and no watch: a moment later that is nothing, two minutes later the watch is deaf.

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

    def _pause(self) -> float:
        if self._missed:
            return RECHECK_INTERVAL_SECONDS
        return max(AUDIT_INTERVAL_SECONDS, AUDIT_INTERVAL_SECONDS_PER_OBJECT * len(self._shown()))

    def _shown(self) -> dict[str, int]:
        """resourceVersion by uid of all that the watches have shown."""
        shown = {uid: version for uid, (_, version) in self._jobs().items()}
        shown |= {facts.uid: facts.version for _, facts in self._pods()}
        return shown | {facts.uid: facts.version for facts in (self._nodes() or {}).values()}
