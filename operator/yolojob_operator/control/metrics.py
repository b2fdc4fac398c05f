"""The operator's Prometheus metrics.

Series of single jobs are computed from the jobs at each scrape, so a deleted job leaves no series behind. Counters and
histograms observe every status change once: after it was written.
"""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from yolojob.api.job import YoloTrainingJob
from yolojob.api.reasons import Reason
from yolojob.api.status import JobPhase, YoloTrainingJobStatus
from yolojob_operator.kube.types import Key
from yolojob_operator.plan.conditions import is_finished

QUICK_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Seconds: from a plan in memory to a request that times out."""
WAIT_BUCKETS = (0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 14400.0)
"""Seconds: from a warm cluster to a queue that is hours long."""
JOB_BUCKETS = (10.0, 60.0, 300.0, 900.0, 3600.0, 7200.0, 14400.0, 28800.0, 86400.0, 259200.0, 604800.0)
"""Seconds: from a test job to a week."""

IDLE_SECONDS = 3600.0
"""Series of a namespace are kept for so long after its last job, so that every scrape interval sees its last values."""

CAUSES = {
    Reason.OOM_KILLED: "out_of_memory",
    Reason.OUT_OF_MEMORY: "out_of_memory",
    Reason.PEER_LOST: "peer_lost",
    Reason.PEER_SILENT: "peer_silent",
    Reason.POD_DELETED: "pod_deleted",
    Reason.SCALED_DOWN: "resized",
    Reason.SCALED_UP: "resized",
    Reason.SPEC_CHANGED: "edited",
    Reason.SUSPENDED: "suspended",
    "PreemptionByScheduler": "preempted",
    "Preempting": "preempted",
    "Preempted": "preempted",
    "WorkloadEvictedDueToPreempted": "preempted",
    "EvictionByEvictionAPI": "evicted",
    "Evicted": "evicted",
    "TerminationByKubelet": "evicted",
    "DeletionByTaintManager": "node_lost",
    "DeletionByPodGC": "node_lost",
    Reason.NODE_LOST: "node_lost",
    "NodeShutdown": "node_shutdown",
    "Shutdown": "node_shutdown",
    "Terminated": "node_shutdown",
}
"""Label of a restart by the reason why its attempt ended: a reason of the operator, of a pod condition
(kubernetes.io/docs/concepts/workloads/pods/disruptions), or of a kubelet. All other reasons come from trainers and
platforms, in unlimited number: they are counted as "failure" or "disruption"."""
OTHER_CAUSES = ("failure", "disruption")

Jobs = Callable[[], Iterable[tuple[Key, int, Callable[[], YoloTrainingJobStatus]]]]
"""Returns, for each existing job, its key, its resourceVersion, and a function that reads its status."""


@dataclass(frozen=True, slots=True)
class JobSeries:
    """The values exported for one job: a tenth of the memory of its status."""

    version: int
    phase: JobPhase
    seconds: tuple[tuple[str, float], ...]
    """By part of its time; only parts that took time."""
    currency: str
    """Empty if no cost is known."""
    cost: float
    per_hour: float
    estimate: float | None
    budget: float | None
    workers: int
    restarts: int
    disruptions: int


def job_series(version: int, status: YoloTrainingJobStatus) -> JobSeries:
    cost = status.cost if status.cost and status.cost.so_far is not None and status.cost.currency else None
    return JobSeries(
        version=version,
        phase=status.phase,
        seconds=tuple((part.value, total) for part, total in status.timing.spent.items()) if status.timing else (),
        currency=(cost.currency or "") if cost else "",
        cost=(cost.so_far or 0.0) if cost else 0.0,
        per_hour=(cost.per_hour or 0.0) if cost and status.phase is JobPhase.RUNNING else 0.0,
        estimate=cost.estimated_total if cost else None,
        budget=cost.budget if cost else None,
        workers=status.workers.active,
        restarts=status.restarts,
        disruptions=status.disruptions,
    )


@dataclass(frozen=True, slots=True)
class Families:
    """The metric families with series of single jobs."""

    phases: GaugeMetricFamily
    timing: GaugeMetricFamily
    cost: GaugeMetricFamily
    per_hour: GaugeMetricFamily
    estimate: GaugeMetricFamily
    budget: GaugeMetricFamily
    workers: GaugeMetricFamily
    restarts: GaugeMetricFamily

    def __iter__(self) -> Iterator[GaugeMetricFamily]:
        return (getattr(self, field.name) for field in fields(self))

    def add(self, key: Key, job: JobSeries) -> None:
        """Add the series of one job."""
        for part, seconds in job.seconds:
            self.timing.add_metric((*key, part), seconds)
        if job.currency:
            labels = (*key, job.currency)
            self.cost.add_metric(labels, job.cost)
            self.per_hour.add_metric(labels, job.per_hour)
            if job.estimate is not None:
                self.estimate.add_metric(labels, job.estimate)
            if job.budget is not None:
                self.budget.add_metric(labels, job.budget)
        self.workers.add_metric(key, job.workers)
        self.restarts.add_metric((*key, "failure"), job.restarts)
        self.restarts.add_metric((*key, "disruption"), job.disruptions)


class JobsCollector(Collector):
    """Computes the series of the existing jobs at each scrape."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._known: dict[Key, JobSeries] = {}
        """The series of the previous scrape."""

    def describe(self) -> Iterator[GaugeMetricFamily]:
        return iter(self._families())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        families = self._families()
        tally: Tally[tuple[str, str]] = Tally()
        self._known = dict(self._read())
        for key, job in self._known.items():
            tally[key[0], job.phase.value] += 1
            families.add(key, job)
        for namespace in {namespace for namespace, _ in tally}:
            for phase in JobPhase:
                families.phases.add_metric((namespace, phase.value), tally[namespace, phase.value])
        yield from families

    def _read(self) -> Iterator[tuple[Key, JobSeries]]:
        for key, version, status in self._jobs():
            known = self._known.get(key)
            yield key, known if known and known.version == version else job_series(version, status())

    @staticmethod
    def _families() -> Families:
        job = ("namespace", "job_name")

        def family(name: str, text: str, *labels: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"yolojob_{name}", text, labels=labels)

        return Families(
            phases=family("jobs", "Jobs by phase", "namespace", "phase"),
            timing=family("job_time_seconds", "Wall-clock time of the job by part", *job, "part"),
            cost=family("job_cost", "Cost of the job's pods so far", *job, "currency"),
            per_hour=family("job_cost_per_hour", "Cost per hour of a running job", *job, "currency"),
            estimate=family("job_cost_estimate", "Estimated cost of the job at its end", *job, "currency"),
            budget=family("job_budget", "Budget of the job", *job, "currency"),
            workers=family("job_active_workers", "Pods that have not ended", *job),
            restarts=family("job_restarts", "Attempts that failed or were disrupted", *job, "kind"),
        )


class OperatorMetrics:
    """All series of the operator."""

    def __init__(self, jobs: Jobs) -> None:
        self.registry = CollectorRegistry()

        def histogram(name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"yolojob_{name}", text, labels, buckets=buckets, registry=self.registry)

        def counter(name: str, text: str, labels: tuple[str, ...]) -> Counter:
            return Counter(f"yolojob_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"yolojob_{name}", text, registry=self.registry)

        self.reconcile_seconds = histogram(
            "reconcile_seconds", "Duration of a reconcile: planning and execution", ("result",), QUICK_BUCKETS
        )
        self.queue_seconds = histogram(
            "reconcile_queue_seconds", "Time that a job waits to be reconciled", (), QUICK_BUCKETS
        )
        self.queue_length = gauge("reconcile_queue_length", "Jobs that wait to be reconciled")
        self.request_seconds = histogram(
            "api_request_seconds", "Duration of requests to the API server", ("verb",), QUICK_BUCKETS
        )
        self.requests = counter(
            "api_requests_total", "Requests to the API server; code 0: no answer", ("verb", "resource", "code")
        )
        self.watch_lag_seconds = gauge("watch_lag_seconds", "Age of the oldest change that no watch has shown yet")
        self.unreadable = counter(
            "unreadable_objects_total", "Objects of lists and watches that cannot be read; the log names them", ()
        )
        self.leader = gauge("leader", "1 while this operator is the leader")
        self.restarts = counter(
            "restarts_total",
            f"Attempts that ended before the job did; causes: {', '.join(sorted({*CAUSES.values(), *OTHER_CAUSES}))}",
            ("namespace", "cause"),
        )
        self.time_to_running = histogram(
            "time_to_running_seconds",
            "Time from a job's creation until all its workers run",
            ("namespace",),
            WAIT_BUCKETS,
        )
        self.duration = histogram(
            "job_duration_seconds", "Time from a job's creation to its end", ("namespace", "phase"), JOB_BUCKETS
        )
        self.cost = counter("cost_total", "Cost of all pods", ("namespace", "currency"))
        self._namespaces: dict[str, float] = {}
        """Namespaces with series, and when each last had a job; monotonic clock."""
        self.registry.register(JobsCollector(jobs))
        ProcessCollector(registry=self.registry)

    def _initialise(self, namespace: str) -> None:
        """Create the series of a namespace with the value 0: `increase` does not count the first sample of a new
        series.
        """
        for cause in (*CAUSES.values(), *OTHER_CAUSES):
            self.restarts.labels(namespace, cause)
        for phase in (JobPhase.SUCCEEDED, JobPhase.FAILED):
            self.duration.labels(namespace, phase.value)
        self.time_to_running.labels(namespace)

    def status_written(self, job: YoloTrainingJob, now: YoloTrainingJobStatus) -> None:
        """Count what a written status has changed.

        Args:
            job: the job with its previous status.
            now: the status that was written.
        """
        namespace = job.metadata.namespace or ""
        if namespace not in self._namespaces:
            self._initialise(namespace)
            self._namespaces[namespace] = time.monotonic()
        self._count_restarts(namespace, job, now)
        self._observe_first_run(namespace, job, now)
        self._observe_duration(namespace, job, now)
        self._count_cost(namespace, job, now)

    def forget_idle_namespaces(self, busy: set[str], now: float) -> None:
        """Drop the series of namespaces that have had no job for IDLE_SECONDS: each has some seventy.

        Args:
            busy: namespaces that have jobs.
            now: by the monotonic clock.
        """
        self._namespaces.update((namespace, now) for namespace in busy & self._namespaces.keys())
        for namespace in [name for name, seen in self._namespaces.items() if now - seen > IDLE_SECONDS]:
            del self._namespaces[namespace]
            for family in (self.restarts, self.time_to_running, self.duration, self.cost):
                family.remove_by_labels({"namespace": namespace})

    def _count_restarts(self, namespace: str, job: YoloTrainingJob, now: YoloTrainingJobStatus) -> None:
        if is_finished(now):
            return
        before = job.status or YoloTrainingJobStatus()
        ended = {r.attempt for r in before.history if r.end_time}
        for record in now.history:
            if record.end_time and record.attempt not in ended:
                self.restarts.labels(namespace, _cause(record.reason or "", before, now)).inc()

    def _observe_first_run(self, namespace: str, job: YoloTrainingJob, now: YoloTrainingJobStatus) -> None:
        before, created = job.status or YoloTrainingJobStatus(), job.metadata.creation_timestamp
        if _has_run(before) or created is None:
            return
        running_time = next((r.running_time for r in now.history if r.running_time), None)
        if running_time is not None:
            seconds = (running_time - created).total_seconds()
            self.time_to_running.labels(namespace).observe(max(seconds, 0.0))

    def _observe_duration(self, namespace: str, job: YoloTrainingJob, now: YoloTrainingJobStatus) -> None:
        before, created = job.status or YoloTrainingJobStatus(), job.metadata.creation_timestamp
        if is_finished(now) and not is_finished(before) and created and now.completion_time:
            seconds = (now.completion_time - created).total_seconds()
            self.duration.labels(namespace, now.phase.value).observe(max(seconds, 0.0))

    def _count_cost(self, namespace: str, job: YoloTrainingJob, now: YoloTrainingJobStatus) -> None:
        if now.cost and now.cost.so_far is not None and now.cost.currency:
            before = job.status.cost.so_far if job.status and job.status.cost else None
            self.cost.labels(namespace, now.cost.currency).inc(max(now.cost.so_far - (before or 0.0), 0.0))


def _has_run(status: YoloTrainingJobStatus) -> bool:
    """Whether an attempt has run; also true if older attempts are no longer in the history."""
    return any(r.running_time for r in status.history) or status.attempt > len(status.history)


def _cause(reason: str, before: YoloTrainingJobStatus, now: YoloTrainingJobStatus) -> str:
    return CAUSES.get(reason) or ("failure" if now.restarts > before.restarts else "disruption")
