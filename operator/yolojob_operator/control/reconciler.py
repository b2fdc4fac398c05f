"""Makes plans and has them carried out: a few workers, and a resync as the retry of everything."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from pydantic import ValidationError

from yolojob.api.manifest import InvalidManifest, parse
from yolojob.api.reasons import Reason
from yolojob.api.status import JobPhase, YoloTrainingJobStatus
from yolojob_operator.control.executor import Executor
from yolojob_operator.control.leader_election import Leadership
from yolojob_operator.control.metrics import Metrics
from yolojob_operator.control.progress_poller import ProgressPoller
from yolojob_operator.control.status_debounce import StatusDebounce
from yolojob_operator.control.watch_audit import JobVersions, WatchAudit
from yolojob_operator.control.work_queue import MIN_INTERVAL_SECONDS, WorkQueue
from yolojob_operator.kube.api_client import ApiClient, ApiError, Conflict
from yolojob_operator.kube.types import Key, Object, lean
from yolojob_operator.objects.defaults import Defaults
from yolojob_operator.plan import lifecycle as planning
from yolojob_operator.plan.builder import EventDraft, Observed
from yolojob_operator.plan.conditions import is_finished
from yolojob_operator.plan.node_facts import NodeFacts
from yolojob_operator.plan.pod_facts import PodFacts

log = logging.getLogger(__name__)

MAX_CONCURRENT_RECONCILES = 32
RESYNC_INTERVAL_SECONDS = 60.0
RETRY_DELAYS_SECONDS = (0.1, 0.5, 2.0, 10.0, 30.0)
WATCH_STALL_SECONDS = 120.0
"""A change of ours that the watch has not shown after so long: nothing else will come through it, either."""


class Reconciler:
    """Brings every job from what is to what should be."""

    def __init__(
        self,
        cluster: ApiClient,
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
        self._api, self._defaults, self._metrics = cluster, defaults, metrics
        self._pods_of = pods_of
        self.leadership = Leadership()
        """Whether it is this operator that works."""
        self._queue = WorkQueue()
        metrics.leader.set_function(self.leadership.is_leader)
        metrics.queue_length.set_function(lambda: len(self._queue))
        self._jobs: dict[Key, Object] = {}
        self.watch_audit = WatchAudit(cluster, namespaces, self._versions, all_pods, nodes)
        """What is there by lists, beside what the watches show."""
        self._executor, self._poller = Executor(cluster), ProgressPoller(cluster, self.wake, self._jobs.__contains__)
        self._failures: dict[Key, int] = {}
        self._debounce = StatusDebounce()
        self._unseen: dict[Key, tuple[int, float]] = {}
        """Versions that we wrote and that the watch has not shown yet, and since when."""
        self._rejected: dict[Key, int] = {}
        """Generations of broken jobs that could only be told by an event."""
        self._settled: set[Key] = set()
        """Finished jobs at which nothing is left to be done."""
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        loops = {f"reconcile-{i}": self._work for i in range(MAX_CONCURRENT_RECONCILES)}
        loops["resync"] = self._resync
        loops["census"] = lambda: self.watch_audit.take(self.leadership.wait, self.job_gone, self.wake)
        loops["reports"] = lambda: self._poller.watch(self._rank0_pods, self.leadership.wait)
        self._tasks = [asyncio.create_task(_run_forever(name, loop), name=name) for name, loop in loops.items()]

    async def stop(self) -> None:
        self._queue.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def statuses(self) -> Iterator[tuple[Key, int, Callable[[], YoloTrainingJobStatus]]]:
        """The jobs that this operator works on, for the metrics; one that waits for the lease has none to tell of."""
        if self.leadership.is_leader():
            for key, body in list(self._jobs.items()):
                yield key, _version(body), partial(_status, body)

    def unhealthy_reason(self) -> str:
        """What is wrong with this operator; nothing while it is well."""
        lag = self.watch_lag()
        return f"the watch is deaf: it has not shown a change of {lag:.0f} s ago" if lag > WATCH_STALL_SECONDS else ""

    def watch_lag(self) -> float:
        """Seconds since the oldest change that the watch has not shown yet: one of ours, or one that a list has shown.

        Who does not work, perhaps because the API server is away, can tell nothing; whoever begins to, begins to count.
        """
        if not self.leadership.is_leader():
            return 0.0
        written = (since for _, since in self._unseen.values())
        oldest = min((*written, *self._executor.unseen(), *self.watch_audit.unseen()), default=None)
        return 0.0 if oldest is None else time.monotonic() - max(oldest, self.leadership.since)

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
        self._jobs[key] = lean(body)

    def _is_here(self, key: Key, body: Object) -> bool:
        """Whether this very job is still there, and not another one of its name."""
        return key in self._jobs and self._jobs[key]["metadata"]["uid"] == body["metadata"]["uid"]

    def job_gone(self, key: Key, uid: str) -> None:
        """A job is no more; of its name there may be another one by now."""
        if key in self._jobs and self._jobs[key]["metadata"]["uid"] != uid:
            return
        memories: tuple[dict[Key, Any], ...] = (self._jobs, self._failures, self._unseen, self._rejected)
        for memory in memories:
            memory.pop(key, None)
        for room in (self._queue, self._executor, self._debounce, self._poller):
            room.forget(key)
        self._settled.discard(key)

    def wake(self, key: Key) -> None:
        """Make a plan for this job soon."""
        if key in self._jobs:
            self._queue.wake(key, on_their_way=len(self._debounce))

    async def pods_changed(self, key: Key, uid: str) -> None:
        """The watch shows a pod of this job."""
        self._executor.shown(key, uid)
        if key in self._jobs:
            self.wake(key)
        elif self.leadership.is_leader():
            try:
                await self._executor.release_orphans(key, self._pods_of(key))
            except ApiError as error:
                log.warning("%s/%s: a workload could not be deleted: %s", *key, error)

    def _versions(self) -> JobVersions:
        return {body["metadata"]["uid"]: (key, _version(body)) for key, body in self._jobs.items()}

    # --- the loops ------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while True:
            key, waited = await self._queue.take(self.leadership.wait)
            began = time.monotonic()
            self._metrics.queue_seconds.observe(waited)
            result = "error"
            try:
                await self._reconcile(key)
                self._failures.pop(key, None)
                result = "ok"
            except Conflict as error:
                result = "conflict"
                await self._refresh(key)
                self._retry(key, error)
            except ApiError as error:
                self._retry(key, error)
            except Exception as error:
                log.exception("%s/%s: no plan could be made", *key)
                self._retry(key, error)
            finally:
                self._queue.done(key)
                if key not in self._jobs:
                    self._queue.forget(key)
                self._metrics.reconcile_seconds.labels(result).observe(time.monotonic() - began)

    def _retry(self, key: Key, error: Exception) -> None:
        if key not in self._jobs:
            return
        count = self._failures.get(key, 0)
        self._failures[key] = count + 1
        delay = RETRY_DELAYS_SECONDS[min(count, len(RETRY_DELAYS_SECONDS) - 1)]
        if isinstance(error, ApiError):
            delay = max(delay, min(error.retry_after, RETRY_DELAYS_SECONDS[-1]))
        level = logging.DEBUG if isinstance(error, Conflict) and not count else logging.WARNING
        log.log(level, "%s/%s: %s; again in %s s", *key, error, delay)
        self._queue.wake_in(key, delay)

    async def _refresh(self, key: Key) -> None:
        """Somebody has changed the job: see how it is, for the watch may be late."""
        body = self._jobs.get(key)
        if body is None:
            return
        try:
            fresh = await self._api.get(body)
        except ApiError:
            return
        if fresh is None:
            self.job_gone(key, body["metadata"]["uid"])
        elif key in self._jobs:
            self._learn(key, fresh)

    async def _resync(self) -> None:
        """Look at every job now and then, spread over the time."""
        while True:
            keys = [key for key in self._jobs if key not in self._settled]
            for key in keys:
                self.wake(key)
                await asyncio.sleep(RESYNC_INTERVAL_SECONDS / len(keys))
            if not keys:
                await asyncio.sleep(RESYNC_INTERVAL_SECONDS)

    def _rank0_pods(self) -> list[tuple[Key, PodFacts]]:
        """The jobs that run, each with the pod of its rank 0."""
        found = []
        for key, body in self._jobs.items():
            status = body.get("status") or {}
            if status.get("phase") == JobPhase.RUNNING:
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
            nodes=self.watch_audit.living_nodes(),
            report=self._poller.of(key, [p for p in owned if job.status and p.attempt == job.status.attempt]),
            obstacle=self._executor.obstacle(key),
        )
        made = planning.plan(job, observed, now, self._defaults)
        waits = self._debounce.seconds_to_wait(key, job.status, made, hindered=observed.obstacle is not None)
        moments = [*([made.due] if made.due else []), *([now + timedelta(seconds=waits)] if waits else [])]
        # Before any request: what fails is tried again in its own time, and a deadline does not wait for that.
        self._queue.cancel(key)
        if moments:
            # Not at once: a plan that is due for good would be made without end.
            self._queue.wake_in(key, max((min(moments) - datetime.now(UTC)).total_seconds(), MIN_INTERVAL_SECONDS))
        if not waits and await self._write_status(key, body, _dump(made.status)):
            self._metrics.changed(job, made.status)
        if not self._is_here(key, body):
            return
        try:
            if await self._executor.carry_out(
                key, job, made, lambda: self.leadership.is_leader() and self._is_here(key, body)
            ):
                self.wake(key)
        finally:  # the status that these events tell of is written: they are not planned again
            await asyncio.gather(*(self._announce(body, event) for event in made.events))
            if not self._is_here(key, body):  # deleted meanwhile
                self._executor.forget(key)
        if is_finished(made.status) and not made.has_actions and not moments and self._is_here(key, body):
            self._settled.add(key)
        else:
            self._settled.discard(key)

    def _owned(self, key: Key, body: Object) -> list[PodFacts]:
        """The job's own pods."""
        uid = body["metadata"]["uid"]
        there = self._executor.pods(key, [p for p in self._pods_of(key) if p.uid not in self.watch_audit.ghosts])
        return [p for p in there if p.owner_uid == uid]

    async def _reject(self, body: Object, invalid: InvalidManifest, now: datetime) -> None:
        key = (body["metadata"]["namespace"], body["metadata"]["name"])
        rejected = _dump(planning.rejected(_status(body), str(invalid), body["metadata"].get("generation", 0), now))
        # What stands there is the job's memory. It may be of another version, and not for us to understand, or to lose.
        status = {**rejected, **(body.get("status") or {}), "observedGeneration": rejected["observedGeneration"]}
        told = {c["type"]: c for c in (*status["conditions"], *rejected["conditions"])}
        status["conditions"] = list(told.values())
        word = EventDraft(type="Warning", reason=Reason.INVALID_SPEC, message=str(invalid))
        try:
            if await self._write_status(key, body, status):
                await self._announce(body, word)
        except ApiError as error:
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
        updated = await self._api.patch_status(body, status)
        if updated is None:
            self.job_gone(key, body["metadata"]["uid"])
        elif self._is_here(key, body) and _version(updated) > _version(self._jobs[key]):
            self._jobs[key] = lean(updated)
            self._unseen[key] = (_version(updated), time.monotonic())
        return updated is not None

    async def _announce(self, body: Object, event: EventDraft) -> None:
        """Post an event. It is a line for people: the plan does not wait for it, nor fail with it."""
        log.info("%s/%s: %s: %s", body["metadata"]["namespace"], body["metadata"]["name"], event.reason, event.message)
        try:
            await self._api.post_event(body, event.type, event.reason, event.message)
        except ApiError as error:
            log.warning("an event could not be posted: %s", error)


async def _run_forever(name: str, loop: Callable[[], Coroutine[Any, Any, None]]) -> None:
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
    return planning.is_managed(body["metadata"].get("deletionTimestamp"), manager)


def _version(body: Object) -> int:
    """resourceVersion; a number that grows, by the API's own promise since Kubernetes 1.35, and in fact since ever."""
    return int(body["metadata"]["resourceVersion"])
