"""When plans are made and carried out: a queue of jobs, a few workers, timers, and a resync as the retry of everything."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from pydantic import ValidationError

from yolojob.job import YoloTrainingJob
from yolojob.manifest import InvalidManifest, parse
from yolojob.status import Phase, Report, YoloTrainingJobStatus
from yolojob_operator import plan as planning
from yolojob_operator.cluster import Cluster, ClusterError, Conflict
from yolojob_operator.facts import PodFacts, pod_facts
from yolojob_operator.plan import Event, Observed, Plan
from yolojob_operator.pods import Defaults, Object

log = logging.getLogger(__name__)

Key = tuple[str, str]
"""(namespace, name) of a job."""

WORKERS = 32
RESYNC_SECONDS = 60.0
RETRY_SECONDS = (0.1, 0.5, 2.0, 10.0, 30.0)
EXPECTED_SECONDS = 30.0
"""For so long a pod that we created counts as there, though the watch has not shown it yet."""
PROGRESS_SECONDS = 2.0
"""Between two looks at a job's progress; longer with many jobs, so that status writes stay bounded."""
JOBS_PER_SECOND = 20


class Reconciler:
    """Brings every job from what is to what should be."""

    def __init__(
        self,
        cluster: Cluster,
        defaults: Defaults,
        pods_of: Callable[[Key], Iterable[PodFacts]],
    ) -> None:
        """
        Args:
            cluster: the API server.
            defaults: what the installation decides for all jobs.
            pods_of: facts of the pods that carry a job's label.
        """
        self._cluster, self._defaults, self._pods_of = cluster, defaults, pods_of
        self._jobs: dict[Key, Object] = {}
        self._queue: asyncio.Queue[Key] = asyncio.Queue()
        self._queued: set[Key] = set()
        self._active: set[Key] = set()
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}
        self._expected: dict[Key, dict[str, tuple[float, PodFacts]]] = {}
        self._conflicts: dict[Key, str] = {}
        self._reports: dict[Key, tuple[str, Report]] = {}
        """Last report, and the uid of the pod that gave it."""
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._work(), name=f"reconcile-{i}") for i in range(WORKERS)]
        self._tasks.append(asyncio.create_task(self._resync(), name="resync"))
        self._tasks.append(asyncio.create_task(self._watch_progress(), name="progress"))

    async def stop(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- what happens outside -------------------------------------------------------------------------------------

    def job_seen(self, body: Object) -> None:
        """The watch shows a job; what we wrote ourselves may be newer."""
        key = (body["metadata"]["namespace"], body["metadata"]["name"])
        known = self._jobs.get(key)
        if known is None or _version(body) > _version(known) or known["metadata"]["uid"] != body["metadata"]["uid"]:
            self._jobs[key] = body
        self.wake(key)

    def job_gone(self, key: Key) -> None:
        for memory in (self._jobs, self._failures, self._expected, self._conflicts, self._reports):
            memory.pop(key, None)
        if timer := self._timers.pop(key, None):
            timer.cancel()

    def wake(self, key: Key) -> None:
        """Make a plan for this job soon."""
        if key in self._jobs and key not in self._queued:
            self._queued.add(key)
            self._queue.put_nowait(key)

    def _wake_in(self, key: Key, seconds: float) -> None:
        if timer := self._timers.pop(key, None):
            timer.cancel()
        self._timers[key] = asyncio.get_running_loop().call_later(max(seconds, 0.0), self.wake, key)

    # --- the loops ------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while True:
            key = await self._queue.get()
            if key in self._active:  # one plan at a time for a job; it stays queued for when that is done
                self._queue.put_nowait(key)
                await asyncio.sleep(0.01)
                continue
            self._queued.discard(key)
            self._active.add(key)
            try:
                await self._reconcile(key)
                self._failures.pop(key, None)
            except Conflict:
                self._wake_in(key, RETRY_SECONDS[0])  # the watch is about to show why
            except ClusterError as error:
                self._retry(key, error)
            except Exception as error:
                log.exception("%s/%s: no plan could be made", *key)
                self._retry(key, error)
            finally:
                self._active.discard(key)

    def _retry(self, key: Key, error: Exception) -> None:
        count = self._failures.get(key, 0)
        self._failures[key] = count + 1
        delay = RETRY_SECONDS[min(count, len(RETRY_SECONDS) - 1)]
        log.warning("%s/%s: %s; again in %s s", *key, error, delay)
        self._wake_in(key, delay)

    async def _resync(self) -> None:
        while True:
            await asyncio.sleep(RESYNC_SECONDS)
            for key in list(self._jobs):
                self.wake(key)

    async def _watch_progress(self) -> None:
        while True:
            running = [k for k, b in self._jobs.items() if (b.get("status") or {}).get("phase") == Phase.RUNNING]
            await asyncio.sleep(max(PROGRESS_SECONDS, len(running) / JOBS_PER_SECOND))
            await asyncio.gather(*(self._look(key) for key in running))

    async def _look(self, key: Key) -> None:
        body = self._jobs.get(key)
        if body is None:
            return
        attempt = (body.get("status") or {}).get("attempt")
        chief = next((p for p in self._owned(key, body) if p.index == 0 and p.attempt == attempt and p.ip), None)
        if chief is None or chief.phase != "Running":
            return
        report = await self._cluster.progress(key[0], chief)
        if report is not None and key in self._jobs:
            self._reports[key] = (chief.uid, report)
            self.wake(key)

    # --- one plan -------------------------------------------------------------------------------------------------

    async def _reconcile(self, key: Key) -> None:
        body = self._jobs.get(key)
        if body is None:
            return
        now = datetime.now(UTC)
        try:
            job = parse(body)
        except InvalidManifest as invalid:
            await self._reject(body, invalid, now)
            return
        owned = self._owned(key, body)
        observed = Observed(
            pods=tuple(owned), report=self._report(key, job, owned), conflict=self._conflicts.get(key, "")
        )
        made = planning.plan(job, observed, now, self._defaults)
        await self._write_status(key, body, made)
        await self._carry_out(key, job, made)
        await asyncio.gather(*(self._announce(body, event) for event in made.events))
        if made.due is not None:
            self._wake_in(key, (made.due - datetime.now(UTC)).total_seconds())

    def _owned(self, key: Key, body: Object) -> list[PodFacts]:
        """The job's own pods: those that the watch shows, and those that we made a moment ago."""
        uid = body["metadata"]["uid"]
        seen = [p for p in self._pods_of(key) if p.owner_uid == uid]
        names = {p.name for p in seen}
        expected = self._expected.get(key, {})
        oldest = time.monotonic() - EXPECTED_SECONDS
        for name in [n for n, (made, _) in expected.items() if n in names or made < oldest]:
            del expected[name]
        return [*seen, *(facts for _, facts in expected.values())]

    def _report(self, key: Key, job: YoloTrainingJob, owned: list[PodFacts]) -> Report | None:
        uid, report = self._reports.get(key, ("", None))
        attempt = job.status.attempt if job.status else 0
        return report if any(p.uid == uid and p.attempt == attempt for p in owned) else None

    async def _reject(self, body: Object, invalid: InvalidManifest, now: datetime) -> None:
        key = (body["metadata"]["namespace"], body["metadata"]["name"])
        try:
            status = YoloTrainingJobStatus.model_validate(body.get("status") or {})
        except ValidationError:
            status = YoloTrainingJobStatus()
        rejected = planning.rejected(status, str(invalid), body["metadata"].get("generation", 0), now)
        made = Plan(status=rejected)
        if await self._write_status(key, body, made):
            await self._announce(body, Event(type="Warning", reason="InvalidSpec", message=str(invalid)))

    async def _write_status(self, key: Key, body: Object, made: Plan) -> bool:
        """Write the status where it is new. It is the plan's memory, so it goes before any deed."""
        status = made.status.model_dump(mode="json", by_alias=True, exclude_none=True)
        if status == body.get("status"):
            return False
        updated = await self._cluster.patch_status(body, status)
        if updated is None:
            self.job_gone(key)
        elif key in self._jobs and _version(updated) > _version(self._jobs[key]):
            self._jobs[key] = updated
        return updated is not None

    async def _carry_out(self, key: Key, job: YoloTrainingJob, made: Plan) -> None:
        namespace = key[0]
        conflict = self._conflicts.pop(key, "") if made.create else ""  # it is about to show whether it is still there
        await asyncio.gather(
            *(self._cluster.delete_pod(namespace, d.name, d.uid, d.grace_seconds) for d in made.delete),
            *(self._create(key, job, item) for item in made.create),
        )
        if made.create and self._conflicts.get(key, "") != conflict:
            self.wake(key)
        if made.delete_job and job.metadata.uid:
            await self._cluster.delete_job(namespace, job.metadata.name, job.metadata.uid)

    async def _announce(self, body: Object, event: Event) -> None:
        """Post an event. It is a line for people: the plan does not wait for it, nor fail with it."""
        log.info("%s/%s: %s: %s", body["metadata"]["namespace"], body["metadata"]["name"], event.reason, event.message)
        try:
            await self._cluster.post_event(body, event.type, event.reason, event.message)
        except ClusterError as error:
            log.warning("an event could not be posted: %s", error)

    async def _create(self, key: Key, job: YoloTrainingJob, item: Object) -> None:
        created = await self._cluster.create(item)
        if created is None:
            found = await self._cluster.get(item)
            if found is not None and not _is_owned(found, job):
                kind, name = item["kind"].lower(), item["metadata"]["name"]
                self._conflicts[key] = f"a {kind} {name} exists that is not this job's: delete it, or rename the job"
                return
            created = found
        if created is not None and item["kind"] == "Pod" and not created["metadata"].get("deletionTimestamp"):
            facts = pod_facts(created)
            self._expected.setdefault(key, {})[facts.name] = (time.monotonic(), facts)


def _is_owned(found: Object, job: YoloTrainingJob) -> bool:
    return any(o.get("uid") == job.metadata.uid for o in found["metadata"].get("ownerReferences") or ())


def _version(body: Object) -> int:
    """resourceVersion; a number that grows, by the API's own promise since Kubernetes 1.35, and in fact since ever."""
    return int(body["metadata"]["resourceVersion"])
