"""Reconciles jobs: plans, writes the status, executes the plan, and retries; a periodic resync covers everything
else.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from pydantic import ValidationError

from yolojob.api.manifest import InvalidManifest, parse_stored
from yolojob.api.reasons import Reason
from yolojob.api.status import JobPhase, YoloTrainingJobStatus
from yolojob_operator.control.executor import Executor
from yolojob_operator.control.leader_election import Leadership
from yolojob_operator.control.metrics import OperatorMetrics
from yolojob_operator.control.progress_poller import ProgressPoller
from yolojob_operator.control.status_debounce import StatusDebounce
from yolojob_operator.control.watch_audit import JobVersions, WatchAudit
from yolojob_operator.control.work_queue import MIN_INTERVAL_SECONDS, WorkQueue
from yolojob_operator.kube.api_client import ApiClient, ApiError, Conflict
from yolojob_operator.kube.json_reader import PRUNED, is_pruned
from yolojob_operator.kube.types import EventDraft, Key, Object, lean, without_large_template
from yolojob_operator.objects.defaults import Defaults
from yolojob_operator.plan import plan
from yolojob_operator.plan.builder import Observed
from yolojob_operator.plan.conditions import is_finished
from yolojob_operator.plan.events import generation_occasion, past_events
from yolojob_operator.plan.lifecycle import is_managed, rejected
from yolojob_operator.plan.node_facts import NodeFacts
from yolojob_operator.plan.pod_facts import PodFacts

log = logging.getLogger(__name__)

MAX_CONCURRENT_RECONCILES = 32
RESYNC_INTERVAL_SECONDS = 60.0
RETRY_DELAYS_SECONDS = (0.1, 0.5, 2.0, 10.0, 30.0)
WATCH_STALL_SECONDS = 120.0
"""A watch is stalled if it has not shown, for this long, a change that the operator wrote or a list contained."""


@dataclass(frozen=True, kw_only=True)
class WatchCache:
    """Access to what the watches have shown."""

    pods_of: Callable[[Key], Iterable[PodFacts]]
    """The pods that carry a job's label."""
    all_pods: Callable[[], Iterable[tuple[Key, PodFacts]]]
    """The pods of all jobs, each with its job."""
    nodes: Callable[[], Mapping[str, NodeFacts] | None]
    """Nodes by name; None if the operator may not list nodes."""


class Reconciler:
    """Brings every job from its observed state to its desired state."""

    def __init__(
        self,
        api: ApiClient,
        defaults: Defaults,
        metrics: OperatorMetrics,
        namespaces: tuple[str, ...],
        cache: WatchCache,
    ) -> None:
        """
        Args:
            api: the API client.
            defaults: settings of the installation for all jobs.
            metrics: counts reconciles and status changes.
            namespaces: the watched namespaces; all if it is empty.
            cache: what the watches have shown.
        """
        self._api, self._defaults, self._metrics, self._cache = api, defaults, metrics, cache
        self.leadership = Leadership()
        """Whether this operator is the leader."""
        self._queue = WorkQueue()
        metrics.leader.set_function(self.leadership.is_leader)
        metrics.queue_length.set_function(lambda: len(self._queue))
        self._jobs: dict[Key, Object] = {}
        self.watch_audit = WatchAudit(api, namespaces, self._versions, cache.all_pods, cache.nodes)
        self._executor = Executor(api)
        self._poller = ProgressPoller(api, self.wake, self._jobs.__contains__)
        self._failures: dict[Key, tuple[int, int]] = {}
        """Consecutive failures, and how many of the job's objects had been created at the last one."""
        self._debounce = StatusDebounce()
        self._unseen: dict[Key, tuple[int, float]] = {}
        """Versions that this operator wrote and the watch has not shown yet, and since when (monotonic clock)."""
        self._rejected: dict[Key, int] = {}
        """Generations of invalid jobs whose status the API server rejects, so that only an event was posted."""
        self._past_events_posted: dict[Key, float] = {}
        """By job: the start of the leadership (monotonic clock) for which its past events were posted."""
        self._settled: set[Key] = set()
        """Finished jobs for which nothing is left to do."""
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        loops = {f"reconcile-{i}": self._work for i in range(MAX_CONCURRENT_RECONCILES)}
        loops["resync"] = self._resync
        loops["watch-audit"] = lambda: self.watch_audit.run(self.leadership.wait, self.job_gone, self.wake)
        loops["progress-poller"] = lambda: self._poller.run(self._rank0_pods, self.leadership.wait)
        self._tasks = [asyncio.create_task(_run_forever(name, loop), name=name) for name, loop in loops.items()]

    async def stop(self) -> None:
        self._queue.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def statuses(self) -> Iterator[tuple[Key, int, Callable[[], YoloTrainingJobStatus]]]:
        """The jobs, for the metrics; none while this operator is not the leader."""
        if self.leadership.is_leader():
            for key, body in list(self._jobs.items()):
                yield key, _version(body), partial(_status, body)

    def unhealthy_reason(self) -> str:
        """Why this operator is unhealthy; empty while it is healthy."""
        lag = self.watch_lag()
        return (
            f"the watch is stalled: it has not shown a change from {lag:.0f} s ago" if lag > WATCH_STALL_SECONDS else ""
        )

    def watch_lag(self) -> float:
        """Seconds since the oldest change that the watch has not shown yet: a change of this operator, or one seen in a
        list.

        It is 0 while this operator is not the leader, perhaps because the API server is unreachable, and counts from
        the moment at which it became the leader.
        """
        if not self.leadership.is_leader():
            return 0.0
        written = (since for _, since in self._unseen.values())
        oldest = min((*written, *self._executor.unseen(), *self.watch_audit.unseen()), default=None)
        return 0.0 if oldest is None else time.monotonic() - max(oldest, self.leadership.since)

    # --- events from the watches ----------------------------------------------------------------------------------

    def job_seen(self, body: Object) -> None:
        """The watch shows a job. The version that this operator wrote may be newer."""
        key = (body["metadata"]["namespace"], body["metadata"]["name"])
        self._store(key, body)
        version, _ = self._unseen.get(key, (0, 0.0))
        if _version(body) >= version:
            self._unseen.pop(key, None)
        self.wake(key)

    def _store(self, key: Key, body: Object) -> None:
        """Keep a job in memory if this version is newer."""
        known = self._jobs.get(key)
        if known is not None and _version(body) <= _version(known):
            return
        if known is not None and known["metadata"]["uid"] != body["metadata"]["uid"]:
            self.job_gone(key, known["metadata"]["uid"])  # it was replaced by another job with its name
        self._keep(key, body)

    def _keep(self, key: Key, body: Object) -> None:
        """Keep a job in memory, without what cannot be read and without a template that nobody could use."""
        self._jobs[key] = lean(without_large_template(self._without_pruned(key, body)))

    def _without_pruned(self, key: Key, body: Object) -> Object:
        """The job, whose fields that could not be read whole are text: then they are invalid, and say why."""
        spec = body.get("spec")
        if not isinstance(spec, dict) or not is_pruned(spec):
            return body
        log.error("%s/%s cannot be read: its spec is nested too deeply", *key)
        self._metrics.unreadable.inc()
        return {**body, "spec": {name: PRUNED if is_pruned(value) else value for name, value in spec.items()}}

    def _exists(self, key: Key, body: Object) -> bool:
        """Whether the job with this uid still exists, and not another one with its name."""
        return key in self._jobs and self._jobs[key]["metadata"]["uid"] == body["metadata"]["uid"]

    def job_gone(self, key: Key, uid: str) -> None:
        """A job no longer exists. Another job may have its name by now."""
        if key in self._jobs and self._jobs[key]["metadata"]["uid"] != uid:
            return
        memories: tuple[dict[Key, Any], ...] = (self._jobs, self._failures, self._unseen, self._rejected)
        for memory in memories:
            memory.pop(key, None)
        for component in (self._queue, self._executor, self._debounce, self._poller):
            component.forget(key)
        self._settled.discard(key)
        self._past_events_posted.pop(key, None)

    def wake(self, key: Key) -> None:
        """Reconcile this job soon."""
        if key in self._jobs:
            self._queue.wake(key, starting_jobs=len(self._debounce))

    async def pods_changed(self, key: Key, uid: str) -> None:
        """The watch shows a change of a pod of this job."""
        self._executor.shown(key, uid)
        if key in self._jobs:
            self.wake(key)
        elif self.leadership.is_leader():
            try:
                await self._executor.release_orphans(key, self._cache.pods_of(key))
            except ApiError as error:
                log.warning("%s/%s: a Workload could not be deleted: %s", *key, error)

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
                log.exception("%s/%s: the job could not be reconciled", *key)
                self._retry(key, error)
            finally:
                self._queue.done(key)
                if key not in self._jobs:
                    self._queue.forget(key)
                self._metrics.reconcile_seconds.labels(result).observe(time.monotonic() - began)

    def _retry(self, key: Key, error: Exception) -> None:
        if key not in self._jobs:
            return
        count, created_before = self._failures.get(key, (0, 0))
        if (created := self._executor.created(key)) > created_before:
            count = 0  # progress since the last failure
        self._failures[key] = count + 1, created
        delay = RETRY_DELAYS_SECONDS[min(count, len(RETRY_DELAYS_SECONDS) - 1)]
        if isinstance(error, ApiError):
            delay = max(delay, min(error.retry_after, RETRY_DELAYS_SECONDS[-1]))
        level = logging.DEBUG if isinstance(error, Conflict) and not count else logging.WARNING
        log.log(level, "%s/%s: %s; retry in %s s", *key, error, delay)
        self._queue.wake_in(key, delay)

    async def _refresh(self, key: Key) -> None:
        """Read a job after a conflict: the watch may not have shown the change yet."""
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
            self._store(key, fresh)

    async def _resync(self) -> None:
        """Reconcile every job once per interval, spread over the interval."""
        while True:
            keys = [key for key in self._jobs if key not in self._settled]
            for key in keys:
                self.wake(key)
                await asyncio.sleep(RESYNC_INTERVAL_SECONDS / len(keys))
            if not keys:
                await asyncio.sleep(RESYNC_INTERVAL_SECONDS)
            self._metrics.forget_idle_namespaces({namespace for namespace, _ in self._jobs}, time.monotonic())

    def _rank0_pods(self) -> list[tuple[Key, PodFacts]]:
        """The running jobs, each with the pod of its rank 0."""
        pods = []
        for key, body in self._jobs.items():
            status = body.get("status") or {}
            if status.get("phase") == JobPhase.RUNNING:
                rank0 = (p for p in self._owned(key, body) if p.index == 0 and p.attempt == status.get("attempt"))
                pods += [(key, p) for p in rank0 if p.ip and p.phase == "Running"]
        return pods

    # --- one reconcile --------------------------------------------------------------------------------------------

    async def _reconcile(self, key: Key) -> None:
        body = self._jobs.get(key)
        if body is None:
            return
        now = datetime.now(UTC)
        if not _is_managed(body):
            return
        try:
            # Not cached: parsing takes 0.05 ms, and a parsed job 16 KB of memory.
            job = parse_stored(body)
        except InvalidManifest as invalid:
            await self._reject(body, invalid, now)
            return
        owned = self._owned(key, body)
        await self._post_past_events(key, body, job.status, now)
        observed = Observed(
            pods=tuple(owned),
            nodes=self.watch_audit.living_nodes(),
            report=self._poller.newest_report(
                key, [p for p in owned if job.status and p.attempt == job.status.attempt]
            ),
            obstacle=self._executor.obstacle(key),
        )
        result = plan(job, observed, now, self._defaults)
        wait = self._debounce.seconds_to_wait(key, job.status, result, has_obstacle=observed.obstacle is not None)
        moments = [*([result.due] if result.due else []), *([now + timedelta(seconds=wait)] if wait else [])]
        # Before any request: a failed request is retried after its own delay, and a deadline must not wait for that.
        self._queue.cancel(key)
        if moments:
            # Not immediately: a plan that stays due would otherwise repeat without a pause.
            self._queue.wake_in(key, max((min(moments) - datetime.now(UTC)).total_seconds(), MIN_INTERVAL_SECONDS))
        if not wait and await self._write_status(key, body, _dump(result.status)):
            self._metrics.status_written(job, result.status)
        if not self._exists(key, body):
            return

        def may_act() -> bool:
            return self.leadership.is_leader() and self._exists(key, body)

        try:
            if await self._executor.execute(key, job, result, may_act):
                self.wake(key)
        finally:  # the status that these events describe is written, so no later plan contains them
            await asyncio.gather(*(self._announce(body, event) for event in result.events))
            if not self._exists(key, body):  # deleted in the meantime
                self._executor.forget(key)
        if is_finished(result.status) and not result.has_actions and not moments and self._exists(key, body):
            self._settled.add(key)
        else:
            self._settled.discard(key)

    def _owned(self, key: Key, body: Object) -> list[PodFacts]:
        """The pods that this job owns."""
        uid = body["metadata"]["uid"]
        pods = self._executor.pods(key, [p for p in self._cache.pods_of(key) if p.uid not in self.watch_audit.ghosts])
        return [p for p in pods if p.owner_uid == uid]

    async def _reject(self, body: Object, invalid: InvalidManifest, now: datetime) -> None:
        key = (body["metadata"]["namespace"], body["metadata"]["name"])
        generation = body["metadata"].get("generation", 0)
        new = _dump(rejected(_status(body), str(invalid), generation, now))
        # The stored status is the job's memory. Another version of the operator may have written it, so its fields are
        # kept.
        status = {**new, **(body.get("status") or {}), "observedGeneration": new["observedGeneration"]}
        conditions = {c["type"]: c for c in (*status["conditions"], *new["conditions"])}
        status["conditions"] = list(conditions.values())
        event = EventDraft(
            type="Warning",
            reason=Reason.INVALID_SPEC,
            message=str(invalid),
            occasion=generation_occasion(generation),
        )
        try:
            if await self._write_status(key, body, status):
                await self._announce(body, event)
        except ApiError as error:
            if error.status != 422:
                raise
            # The API server rejects a status for this job as well: then only an event is posted, once per generation.
            if self._rejected.get(key) != body["metadata"]["generation"]:
                self._rejected[key] = body["metadata"]["generation"]
                await self._announce(body, event)

    async def _post_past_events(
        self, key: Key, body: Object, status: YoloTrainingJobStatus | None, now: datetime
    ) -> None:
        """Post the events that the previous leader may not have posted, once after this operator became the leader."""
        if self._past_events_posted.get(key) == self.leadership.since:
            return
        self._past_events_posted[key] = self.leadership.since
        for event in past_events(status, now) if status else ():
            await self._announce(body, event)

    async def _write_status(self, key: Key, body: Object, status: Object) -> bool:
        """Write the status if it has changed. Returns whether it was written.

        It is the memory of the next plan, so it is written before the plan is executed.
        """
        if status == body.get("status"):
            return False
        updated = await self._api.patch_status(body, status)
        if updated is None:
            self.job_gone(key, body["metadata"]["uid"])
        elif self._exists(key, body) and _version(updated) > _version(self._jobs[key]):
            self._keep(key, updated)
            self._unseen[key] = (_version(updated), time.monotonic())
        return updated is not None

    async def _announce(self, body: Object, event: EventDraft) -> None:
        """Post an event. It is information for people: if it cannot be posted, the plan does not fail."""
        log.info("%s/%s: %s: %s", body["metadata"]["namespace"], body["metadata"]["name"], event.reason, event.message)
        try:
            await self._api.post_event(body, event)
        except ApiError as error:
            log.warning("an event could not be posted: %s", error)


async def _run_forever(name: str, loop: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a loop that must not end: after an error it is restarted, or the operator would seem healthy and do
    nothing.
    """
    while True:
        try:
            await loop()
        except Exception:
            log.exception("%s: restarted after an error", name)
            await asyncio.sleep(1.0)


def _dump(status: YoloTrainingJobStatus) -> Object:
    return status.model_dump(mode="json", by_alias=True, exclude_none=True)


def _status(body: Object) -> YoloTrainingJobStatus:
    try:
        return YoloTrainingJobStatus.model_validate(body.get("status") or {})
    except ValidationError:
        return YoloTrainingJobStatus()


def _is_managed(body: Object) -> bool:
    """Whether this operator manages a job. Its spec may be invalid."""
    policy = body["spec"].get("runPolicy") if isinstance(body.get("spec"), dict) else None
    manager = policy.get("managedBy") if isinstance(policy, dict) else None
    return is_managed(body["metadata"].get("deletionTimestamp"), manager)


def _version(body: Object) -> int:
    """resourceVersion: a growing number. The API guarantees this since Kubernetes 1.35; earlier versions behave the
    same.
    """
    return int(body["metadata"]["resourceVersion"])
