"""The operator's Prometheus metrics.

What concerns single jobs is read from the jobs themselves when Prometheus asks, so a deleted job leaves no series behind.
Counters and histograms see every change of a status once: when it has been written.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

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
"""Seconds: from a trial to a week."""

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
"""Label of a restart by the reason that its attempt ended: ours, a pod condition's (kubernetes.io/docs/concepts/workloads/pods/
disruptions), or a kubelet's. Other reasons are words of the trainer or of a platform, of which there may be any number: they
are "failure" or "disruption"."""
OTHER_CAUSES = ("failure", "disruption")

Jobs = Callable[[], Iterable[tuple[Key, int, Callable[[], YoloTrainingJobStatus]]]]
"""Gives the jobs that there are: whose, in which version, and how to read the status."""


@dataclass(frozen=True, slots=True)
class JobSeries:
    """What is told of a job: a tenth of what its status takes in memory."""

    version: int
    phase: JobPhase
    seconds: tuple[tuple[str, float], ...]
    """By part of its time, those that there were."""
    currency: str
    """Empty where nothing is known of money."""
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


class JobsCollector(Collector):
    """Series of the jobs that there are."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._known: dict[Key, JobSeries] = {}
        """Of the last time."""

    def describe(self) -> Iterator[GaugeMetricFamily]:
        return iter(self._families())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        phases, timing, cost, per_hour, estimate, budget, workers, restarts = families = self._families()
        tally: Tally[tuple[str, str]] = Tally()
        self._known = dict(self._read())
        for names, job in self._known.items():
            tally[names[0], job.phase.value] += 1
            for part, seconds in job.seconds:
                timing.add_metric((*names, part), seconds)
            if job.currency:
                cost.add_metric((*names, job.currency), job.cost)
                per_hour.add_metric((*names, job.currency), job.per_hour)
                if job.estimate is not None:
                    estimate.add_metric((*names, job.currency), job.estimate)
                if job.budget is not None:
                    budget.add_metric((*names, job.currency), job.budget)
            workers.add_metric(names, job.workers)
            restarts.add_metric((*names, "failure"), job.restarts)
            restarts.add_metric((*names, "disruption"), job.disruptions)
        for namespace in {namespace for namespace, _ in tally}:
            for phase in JobPhase:
                phases.add_metric((namespace, phase.value), tally[namespace, phase.value])
        yield from families

    def _read(self) -> Iterator[tuple[Key, JobSeries]]:
        for names, version, status in self._jobs():
            known = self._known.get(names)
            yield names, known if known and known.version == version else job_series(version, status())

    @staticmethod
    def _families() -> tuple[GaugeMetricFamily, ...]:
        job = ("namespace", "job_name")
        return (
            GaugeMetricFamily("yolojob_jobs", "Jobs by phase", labels=("namespace", "phase")),
            GaugeMetricFamily("yolojob_job_time_seconds", "Where the job's time went", labels=(*job, "part")),
            GaugeMetricFamily("yolojob_job_cost", "What the job's pods have cost so far", labels=(*job, "currency")),
            GaugeMetricFamily("yolojob_job_cost_per_hour", "What a running job costs", labels=(*job, "currency")),
            GaugeMetricFamily(
                "yolojob_job_cost_estimate", "What the job will have cost when it ends", labels=(*job, "currency")
            ),
            GaugeMetricFamily("yolojob_job_budget", "What the job may cost", labels=(*job, "currency")),
            GaugeMetricFamily("yolojob_job_active_workers", "Pods that have not ended", labels=job),
            GaugeMetricFamily("yolojob_job_restarts", "Attempts that did not end well", labels=(*job, "kind")),
        )


class Metrics:
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
            "reconcile_seconds", "Time of making a plan and carrying it out", ("result",), QUICK_BUCKETS
        )
        self.queue_seconds = histogram("reconcile_queue_seconds", "Wait of a job for its plan", (), QUICK_BUCKETS)
        self.queue_length = gauge("reconcile_queue_length", "Jobs that wait for a plan")
        self.request_seconds = histogram(
            "api_request_seconds", "Time of requests to the API server", ("verb",), QUICK_BUCKETS
        )
        self.requests = counter(
            "api_requests_total", "Requests to the API server; code 0 is no answer", ("verb", "resource", "code")
        )
        self.watch_lag_seconds = gauge("watch_lag_seconds", "Age of the oldest change that no watch has shown yet")
        self.leader = gauge("leader", "1 while this operator is the one that works")
        self.restarts = counter(
            "restarts_total",
            f"Attempts that ended before the job did; causes: {', '.join(sorted({*CAUSES.values(), *OTHER_CAUSES}))}",
            ("namespace", "cause"),
        )
        self.time_to_running = histogram(
            "time_to_running_seconds", "From a job's creation until all its workers ran", ("namespace",), WAIT_BUCKETS
        )
        self.duration = histogram(
            "job_duration_seconds", "From a job's creation to its end", ("namespace", "phase"), JOB_BUCKETS
        )
        self.cost = counter("cost_total", "What pods have cost", ("namespace", "currency"))
        self._namespaces: set[str] = set()
        self.registry.register(JobsCollector(jobs))
        ProcessCollector(registry=self.registry)

    def _begin(self, namespace: str) -> None:
        """Series begin at 0: `increase` cannot see a counter's step from nothing to 1."""
        self._namespaces.add(namespace)
        for cause in (*CAUSES.values(), *OTHER_CAUSES):
            self.restarts.labels(namespace, cause)
        for phase in (JobPhase.SUCCEEDED, JobPhase.FAILED):
            self.duration.labels(namespace, phase.value)
        self.time_to_running.labels(namespace)

    def changed(self, job: YoloTrainingJob, now: YoloTrainingJobStatus) -> None:
        """A job's status was written anew."""
        before, created = job.status or YoloTrainingJobStatus(), job.metadata.creation_timestamp
        namespace = job.metadata.namespace or ""
        if namespace not in self._namespaces:
            self._begin(namespace)
        known = {r.attempt: r for r in before.history}
        ran = any(r.running_time for r in before.history) or before.attempt > len(before.history)
        for record in now.history:
            old = known.get(record.attempt)
            if record.end_time and not (old and old.end_time) and not is_finished(now):
                self.restarts.labels(namespace, _cause(record.reason or "", before, now)).inc()
            first = record.running_time is not None and not ran
            if first and record.running_time and created:
                ran = True
                waited = (record.running_time - created).total_seconds()
                self.time_to_running.labels(namespace).observe(max(waited, 0.0))
        if is_finished(now) and not is_finished(before) and created and now.completion_time:
            took = (now.completion_time - created).total_seconds()
            self.duration.labels(namespace, now.phase.value).observe(max(took, 0.0))
        if now.cost and now.cost.so_far is not None and now.cost.currency:
            more = now.cost.so_far - ((before.cost.so_far if before.cost else None) or 0.0)
            self.cost.labels(namespace, now.cost.currency).inc(max(more, 0.0))


def _cause(reason: str, before: YoloTrainingJobStatus, now: YoloTrainingJobStatus) -> str:
    return CAUSES.get(reason) or ("failure" if now.restarts > before.restarts else "disruption")
