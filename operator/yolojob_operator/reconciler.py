"""When plans are made and carried out: a queue of jobs, a few workers, timers, and a resync as the retry of everything."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import ValidationError

from yolojob import contract
from yolojob.manifest import InvalidManifest, parse
from yolojob.status import Phase, YoloTrainingJobStatus
from yolojob_operator import plan as planning
from yolojob_operator.cluster import Cluster, ClusterError, Conflict
from yolojob_operator.conditions import is_finished
from yolojob_operator.deeds import Deeds
from yolojob_operator.draft import Event, Observed
from yolojob_operator.facts import Key, PodFacts
from yolojob_operator.metrics import Metrics
from yolojob_operator.nodes import NodeFacts
from yolojob_operator.plan import Plan
from yolojob_operator.pods import Defaults, Object
from yolojob_operator.reports import Reports

log = logging.getLogger(__name__)

WORKERS = 32
RESYNC_SECONDS = 60.0
RETRY_SECONDS = (0.1, 0.5, 2.0, 10.0, 30.0)
MINOR_SECONDS = 2.0
MINOR_PER_SECOND = 10
MINOR_MOST_SECONDS = 60.0
"""Counts, and how far pods are on their way to run, are written when nothing newer has come for a while: mostly the next news
makes them old. The more jobs are on their way, the longer that is, and no longer than the last of these."""
PAUSE_SECONDS = 0.04
PAUSE_PER_JOB = 0.002
"""Between two plans of a job; the second for each job that is on its way. Its pods' news come in flocks: one plan is for all."""
DEAF_SECONDS = 120.0
"""A change of ours that the watch has not shown after so long: nothing else will come through it, either."""
_ON_ITS_WAY = (Phase.PENDING, Phase.QUEUED, Phase.STARTING, Phase.RESTARTING)


@dataclass(frozen=True, slots=True)
class Minor:
    """News that may wait to be written."""

    news: object
    first: float
    """When the first came that is not written yet."""
    latest: float


class Reconciler:
    """Brings every job from what is to what should be."""

    def __init__(
        self,
        cluster: Cluster,
        defaults: Defaults,
        metrics: Metrics,
        namespaces: tuple[str, ...],
        pods_of: Callable[[Key], Iterable[PodFacts]],
        all_pods: Callable[[], Iterable[tuple[Key, PodFacts]]],
        nodes: Callable[[], Mapping[str, NodeFacts] | None],
    ) -> None:
        """
        Args:
            cluster: the API server.
            defaults: what the installation decides for all jobs.
            metrics: told of what happens.
            namespaces: where the jobs are; everywhere, where there are none.
            pods_of: facts of the pods that carry a job's label.
            all_pods: the same of all jobs.
            nodes: facts of all nodes by name; none where they may not be seen.
        """
        self._cluster, self._defaults, self._metrics = cluster, defaults, metrics
        self._namespaces, self._pods_of, self._all_pods, self._nodes = namespaces, pods_of, all_pods, nodes
        self._leads = asyncio.Event()
        self._leads_from = self._leads_until = 0.0
        """Since when, and up to which moment, this operator is the one that works; monotonic clock."""
        metrics.leader.set_function(self._may_work)
        metrics.queue_length.set_function(lambda: len(self._queued))
        self._jobs: dict[Key, Object] = {}
        self._deeds, self._reports = Deeds(cluster), Reports(cluster, self.wake, self._jobs.__contains__)
        self._queue: asyncio.Queue[Key] = asyncio.Queue()
        self._queued: dict[Key, float] = {}
        """Jobs in the queue, or about to come there, and since when."""
        self._pauses: dict[Key, asyncio.TimerHandle] = {}
        """Those that are about to come."""
        self._active: set[Key] = set()
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        """When each job is due at the latest."""
        self._planned: dict[Key, float] = {}
        """When each job was planned last."""
        self._failures: dict[Key, int] = {}
        self._read: dict[Key, tuple[int, YoloTrainingJobStatus]] = {}
        """What was read of each job's status for the metrics, and in which version."""
        self._minor: dict[Key, Minor] = {}
        """Jobs whose status waits to be written."""
        self._unseen: dict[Key, tuple[int, float]] = {}
        """Versions that we wrote and that the watch has not shown yet, and since when."""
        self._rejected: dict[Key, int] = {}
        """Generations of broken jobs that could only be told by an event."""
        self._settled: set[Key] = set()
        """Finished jobs at which nothing is left to be done."""
        self._listed = asyncio.Event()
        self._ghosts: set[str] = set()
        """uids of pods and nodes that the indices have, and that are gone."""
        self._missed: dict[str, tuple[int, float]] = {}
        """uids of objects that a list has shown and no watch: in which version, and since when."""
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        loops = {f"reconcile-{i}": self._work for i in range(WORKERS)}
        loops |= {"resync": self._resync, "ghosts": self._exorcise}
        loops["reports"] = lambda: self._reports.watch(self._chiefs, self._turn)
        self._tasks = [asyncio.create_task(_for_ever(name, loop), name=name) for name, loop in loops.items()]

    async def stop(self) -> None:
        for timer in (*self._timers.values(), *self._pauses.values()):
            timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def lead(self, until: float) -> None:
        """Up to which moment of the monotonic clock this operator is the one that works; 0: it is not."""
        if until and not self._may_work():
            self._leads_from = time.monotonic()
        self._leads_until = until
        if self._may_work():
            self._leads.set()
        else:
            self._leads.clear()

    def _may_work(self) -> bool:
        return time.monotonic() < self._leads_until

    async def _turn(self) -> None:
        """Wait until this operator is the one that works."""
        while not self._may_work():
            self._leads.clear()
            await self._leads.wait()

    def statuses(self) -> Iterator[tuple[Key, YoloTrainingJobStatus]]:
        """The jobs that this operator works on, for the metrics; one that waits for the lease has none to tell of."""
        if not self._may_work():
            return
        for key, body in list(self._jobs.items()):
            version, status = self._read.get(key, (0, None))
            if status is None or version != _version(body):
                status = _status(body)
                self._read[key] = (_version(body), status)
            yield key, status

    def ailment(self) -> str:
        """What is wrong with this operator; nothing while it is well."""
        lag = self.watch_lag()
        return f"the watch is deaf: it has not shown a change of {lag:.0f} s ago" if lag > DEAF_SECONDS else ""

    def watch_lag(self) -> float:
        """Seconds since the oldest change that the watch has not shown yet: one of ours, or one that a list has shown.

        Who does not work, perhaps because the API server is away, can tell nothing; whoever begins to, begins to count.
        """
        if not self._may_work():
            return 0.0
        if self._missed:
            shown = self._shown()
            self._missed = {uid: m for uid, m in self._missed.items() if shown.get(uid, -1) < m[0]}
        moments = [since for _, since in (*self._unseen.values(), *self._missed.values())]
        oldest = min((*moments, *self._deeds.unseen()), default=None)
        return 0.0 if oldest is None else time.monotonic() - max(oldest, self._leads_from)

    # --- what happens outside -------------------------------------------------------------------------------------

    def job_seen(self, body: Object) -> None:
        """The watch shows a job; what we wrote ourselves may be newer."""
        key = (body["metadata"]["namespace"], body["metadata"]["name"])
        self._learn(key, body)
        version, _ = self._unseen.get(key, (0, 0.0))
        if _version(body) >= version:
            self._unseen.pop(key, None)
        self.wake(key)

    def _learn(self, key: Key, body: Object) -> None:
        """Remember how a job is, if that is news."""
        known = self._jobs.get(key)
        if known is not None and _version(body) <= _version(known):
            return
        if known is not None and known["metadata"]["uid"] != body["metadata"]["uid"]:
            self.job_gone(key, known["metadata"]["uid"])  # and another one of its name is here
        self._jobs[key] = body

    def _is_here(self, key: Key, body: Object) -> bool:
        """Whether this very job is still there, and not another one of its name."""
        return key in self._jobs and self._jobs[key]["metadata"]["uid"] == body["metadata"]["uid"]

    def job_gone(self, key: Key, uid: str) -> None:
        """A job is no more; of its name there may be another one by now."""
        if key in self._jobs and self._jobs[key]["metadata"]["uid"] != uid:
            return
        memories: tuple[dict[Key, Any], ...] = (
            self._jobs,
            self._failures,
            self._planned,
            self._read,
            self._minor,
            self._unseen,
            self._rejected,
        )
        for memory in memories:
            memory.pop(key, None)
        self._deeds.forget(key)
        self._reports.forget(key)
        self._settled.discard(key)
        if timer := self._timers.pop(key, None):
            timer.cancel()

    def listed(self) -> None:
        """A watch has begun anew by listing: what was deleted meanwhile is not told."""
        self._listed.set()

    def wake(self, key: Key) -> None:
        """Make a plan for this job soon."""
        if key not in self._jobs or key in self._queued:
            return
        now = time.monotonic()
        self._queued[key] = now
        pause = self._planned.get(key, 0.0) + PAUSE_SECONDS + PAUSE_PER_JOB * len(self._minor) - now
        if pause > 0:
            self._pauses[key] = asyncio.get_running_loop().call_later(pause, self._enqueue, key)
        else:
            self._queue.put_nowait(key)

    def _enqueue(self, key: Key) -> None:
        self._pauses.pop(key, None)
        self._queue.put_nowait(key)

    def _due(self, key: Key) -> None:
        """The moment has come that a plan asked for: it does not wait for more news."""
        self._timers.pop(key, None)
        if pause := self._pauses.get(key):
            pause.cancel()
            self._enqueue(key)
        elif key in self._jobs and key not in self._queued:
            self._queued[key] = time.monotonic()
            self._queue.put_nowait(key)

    async def pods_changed(self, key: Key, uid: str) -> None:
        """The watch shows a pod of this job."""
        self._deeds.shown(key, uid)
        if key in self._jobs:
            self.wake(key)
        elif self._may_work():
            try:
                await self._deeds.release_orphans(key, self._pods_of(key))
            except ClusterError as error:
                log.warning("%s/%s: a workload could not be deleted: %s", *key, error)

    def _wake_in(self, key: Key, seconds: float) -> None:
        """Make a plan after so long, if none is due before."""
        loop = asyncio.get_running_loop()
        when = loop.time() + max(seconds, 0.0)
        if timer := self._timers.get(key):
            if timer.when() <= when:
                return
            timer.cancel()
        self._timers[key] = loop.call_at(when, self._due, key)

    # --- the loops ------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while True:
            key = await self._queue.get()
            await self._turn()
            if key in self._active:  # one plan at a time for a job; it stays queued for when that is done
                self._queue.put_nowait(key)
                await asyncio.sleep(0.01)
                continue
            began = time.monotonic()
            self._metrics.queue_seconds.observe(began - self._queued.pop(key, began))
            if key not in self._jobs:
                continue
            self._active.add(key)
            self._planned[key] = began
            result = "error"
            try:
                await self._reconcile(key)
                self._failures.pop(key, None)
                result = "ok"
            except Conflict as error:
                result = "conflict"
                await self._look_again(key)
                self._retry(key, error)
            except ClusterError as error:
                self._retry(key, error)
            except Exception as error:
                log.exception("%s/%s: no plan could be made", *key)
                self._retry(key, error)
            finally:
                self._active.discard(key)
                self._metrics.reconcile_seconds.labels(result).observe(time.monotonic() - began)

    def _retry(self, key: Key, error: Exception) -> None:
        if key not in self._jobs:
            return
        count = self._failures.get(key, 0)
        self._failures[key] = count + 1
        delay = RETRY_SECONDS[min(count, len(RETRY_SECONDS) - 1)]
        if isinstance(error, ClusterError):
            delay = max(delay, min(error.retry_after, RETRY_SECONDS[-1]))
        level = logging.DEBUG if isinstance(error, Conflict) and not count else logging.WARNING
        log.log(level, "%s/%s: %s; again in %s s", *key, error, delay)
        self._wake_in(key, delay)

    async def _look_again(self, key: Key) -> None:
        """Somebody has changed the job: see how it is, for the watch may be late."""
        body = self._jobs.get(key)
        if body is None:
            return
        try:
            fresh = await self._cluster.get(body)
        except ClusterError:
            return
        if fresh is None:
            self.job_gone(key, body["metadata"]["uid"])
        elif key in self._jobs:
            fresh["metadata"].pop("managedFields", None)
            self._learn(key, fresh)

    async def _resync(self) -> None:
        """Look at every job now and then, spread over the time."""
        while True:
            keys = [key for key in self._jobs if key not in self._settled]
            for key in keys:
                self.wake(key)
                await asyncio.sleep(RESYNC_SECONDS / len(keys))
            if not keys:
                await asyncio.sleep(RESYNC_SECONDS)

    async def _exorcise(self) -> None:
        """Find what is gone though no watch has told: kopf forgets nothing when it lists anew."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._listed.wait(), RESYNC_SECONDS)
            await asyncio.sleep(1.0)  # one list brings many objects
            self._listed.clear()
            await self._turn()
            jobs = {body["metadata"]["uid"]: key for key, body in self._jobs.items()}
            pods = {facts.uid: key for key, facts in self._all_pods()}
            nodes = None if (known := self._nodes()) is None else {facts.uid for facts in known.values()}
            try:
                living_jobs = await self._cluster.versions(contract.KIND, self._namespaces)
                living_pods = await self._cluster.versions("Pod", self._namespaces)
                living_nodes = {} if nodes is None else await self._cluster.versions("Node", ())
            except ClusterError as error:
                log.warning("what is gone could not be found out: %s", error)
                continue
            for uid in jobs.keys() - living_jobs:
                self.job_gone(jobs[uid], uid)
            gone = pods.keys() - living_pods
            for uid in gone:
                self.wake(pods[uid])
            self._ghosts = gone | ((nodes or set()) - living_nodes.keys())
            self._compare(living_jobs | living_pods | living_nodes)

    def _compare(self, listed: Mapping[str, int]) -> None:
        """Note what a list has shown and no watch: a moment later that is nothing, two minutes later the watch is deaf."""
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

    def _shown(self) -> dict[str, int]:
        """resourceVersion by uid of all that the watches have shown."""
        shown = {body["metadata"]["uid"]: _version(body) for body in self._jobs.values()}
        shown |= {facts.uid: facts.version for _, facts in self._all_pods()}
        return shown | {facts.uid: facts.version for facts in (self._nodes() or {}).values()}

    def _living_nodes(self) -> Mapping[str, NodeFacts] | None:
        nodes = self._nodes()
        if nodes is None or not self._ghosts:
            return nodes
        return {name: facts for name, facts in nodes.items() if facts.uid not in self._ghosts}

    def _chiefs(self) -> list[tuple[Key, PodFacts]]:
        """The jobs that run, each with the pod of its rank 0."""
        found = []
        for key, body in self._jobs.items():
            status = body.get("status") or {}
            if status.get("phase") == Phase.RUNNING:
                own = (p for p in self._owned(key, body) if p.index == 0 and p.attempt == status.get("attempt"))
                found += [(key, p) for p in own if p.ip and p.phase == "Running"]
        return found

    # --- one plan -------------------------------------------------------------------------------------------------

    async def _reconcile(self, key: Key) -> None:
        body = self._jobs.get(key)
        if body is None:
            return
        now = datetime.now(UTC)
        if not _is_ours(body):
            return
        try:
            job = parse(body)
        except InvalidManifest as invalid:
            await self._reject(body, invalid, now)
            return
        owned = self._owned(key, body)
        observed = Observed(
            pods=tuple(owned),
            nodes=self._living_nodes(),
            report=self._reports.of(key, [p for p in owned if job.status and p.attempt == job.status.attempt]),
            obstacle=self._deeds.obstacle(key),
        )
        made = planning.plan(job, observed, now, self._defaults)
        waits = self._may_wait(key, job.status, made)
        moments = [*([made.due] if made.due else []), *([now + timedelta(seconds=waits)] if waits else [])]
        # Before any request: what fails is tried again in its own time, and a deadline does not wait for that.
        if timer := self._timers.pop(key, None):
            timer.cancel()
        if moments:
            # Not at once: a plan that is due for good would be made without end.
            self._wake_in(key, max((min(moments) - datetime.now(UTC)).total_seconds(), PAUSE_SECONDS))
        if not waits and await self._write_status(key, body, _dump(made.status)):
            self._metrics.changed(job, made.status)
        if not self._is_here(key, body):
            return
        try:
            if await self._deeds.carry_out(key, job, made, lambda: self._may_work() and self._is_here(key, body)):
                self.wake(key)
        finally:  # the status that these events tell of is written: they are not planned again
            await asyncio.gather(*(self._announce(body, event) for event in made.events))
        if not self._is_here(key, body):  # deleted meanwhile
            self._deeds.forget(key)
        elif is_finished(made.status) and not made.has_deeds and not moments:
            self._settled.add(key)
        else:
            self._settled.discard(key)

    def _may_wait(self, key: Key, written: YoloTrainingJobStatus | None, made: Plan) -> float:
        """Seconds for which the status need not be written yet; 0: now."""
        before = written or YoloTrainingJobStatus()
        same_attempt = made.status.attempt == before.attempt
        if made.has_deeds:
            # The first gang is made from nothing but the spec: whoever crashes now, makes the same again.
            is_first = written is None and bool(made.create) and not (made.delete or made.events or made.release)
            minor = is_first and self._deeds.obstacle(key) is None
        else:
            on_its_way = made.status.phase in _ON_ITS_WAY and before.phase in _ON_ITS_WAY
            same = made.status.phase == before.phase and made.status.progress == before.progress
            minor = (on_its_way or same) and (same_attempt or before.attempt == 0)
        if not minor or made.status == before:
            self._minor.pop(key, None)
            return 0.0
        # What was never written is said anew in each plan, with new times.
        words = [(c.type, c.status, c.reason, c.message) for c in made.status.conditions]
        now, news = time.monotonic(), (made.status.phase, made.status.workers, words)
        known = self._minor.get(key)
        if known is None or known.news != news:
            known = self._minor[key] = Minor(news, known.first if known else now, now)
        quiet = MINOR_SECONDS + (len(self._minor) - 1) / MINOR_PER_SECOND
        left = min(known.latest + quiet, known.first + MINOR_MOST_SECONDS) - now
        if left <= 0:
            del self._minor[key]
        return max(left, 0.0)

    def _owned(self, key: Key, body: Object) -> list[PodFacts]:
        """The job's own pods."""
        uid = body["metadata"]["uid"]
        there = self._deeds.pods(key, [p for p in self._pods_of(key) if p.uid not in self._ghosts])
        return [p for p in there if p.owner_uid == uid]

    async def _reject(self, body: Object, invalid: InvalidManifest, now: datetime) -> None:
        key = (body["metadata"]["namespace"], body["metadata"]["name"])
        rejected = _dump(planning.rejected(_status(body), str(invalid), body["metadata"].get("generation", 0), now))
        # What stands there is the job's memory. It may be of another version, and not for us to understand, or to lose.
        status = {**rejected, **(body.get("status") or {}), "observedGeneration": rejected["observedGeneration"]}
        told = {c["type"]: c for c in (*status["conditions"], *rejected["conditions"])}
        status["conditions"] = list(told.values())
        word = Event(type="Warning", reason="InvalidSpec", message=str(invalid))
        try:
            if await self._write_status(key, body, status):
                await self._announce(body, word)
        except ClusterError as error:
            if error.status != 422:
                raise
            # So broken that the API server takes no status for it, either: then an event has to do.
            if self._rejected.get(key) != body["metadata"]["generation"]:
                self._rejected[key] = body["metadata"]["generation"]
                await self._announce(body, word)

    async def _write_status(self, key: Key, body: Object, status: Object) -> bool:
        """Write the status where it is new. It is the plan's memory, so it goes before any deed."""
        if status == body.get("status"):
            return False
        updated = await self._cluster.patch_status(body, status)
        if updated is None:
            self.job_gone(key, body["metadata"]["uid"])
        elif self._is_here(key, body) and _version(updated) > _version(self._jobs[key]):
            updated["metadata"].pop("managedFields", None)
            self._jobs[key] = updated
            self._unseen[key] = (_version(updated), time.monotonic())
        return updated is not None

    async def _announce(self, body: Object, event: Event) -> None:
        """Post an event. It is a line for people: the plan does not wait for it, nor fail with it."""
        log.info("%s/%s: %s: %s", body["metadata"]["namespace"], body["metadata"]["name"], event.reason, event.message)
        try:
            await self._cluster.post_event(body, event.type, event.reason, event.message)
        except ClusterError as error:
            log.warning("an event could not be posted: %s", error)


async def _for_ever(name: str, loop: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a loop that must not end. Without one of them the operator would seem to be well, and do nothing."""
    while True:
        try:
            await loop()
        except Exception:
            log.exception("%s: begun anew", name)
            await asyncio.sleep(1.0)


def _dump(status: YoloTrainingJobStatus) -> Object:
    return status.model_dump(mode="json", by_alias=True, exclude_none=True)


def _status(body: Object) -> YoloTrainingJobStatus:
    try:
        return YoloTrainingJobStatus.model_validate(body.get("status") or {})
    except ValidationError:
        return YoloTrainingJobStatus()


def _is_ours(body: Object) -> bool:
    """Whether the job is ours to look after. Its spec may be broken."""
    policy = body["spec"].get("runPolicy") if isinstance(body.get("spec"), dict) else None
    manager = policy.get("managedBy") if isinstance(policy, dict) else None
    return planning.is_ours(body["metadata"].get("deletionTimestamp"), manager)


def _version(body: Object) -> int:
    """resourceVersion; a number that grows, by the API's own promise since Kubernetes 1.35, and in fact since ever."""
    return int(body["metadata"]["resourceVersion"])
