"""The operator's metrics: counters see each change once, and a deleted job leaves no series."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.plans import NOW, after, failed, job, make_plan, pod, running
from yolojob_operator.control.metrics import OperatorMetrics

from yolojob.api.status import JobPhase, YoloTrainingJobStatus


def value(metrics: OperatorMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, {"namespace": "default", **labels})


@pytest.mark.parametrize(
    ("disruption", "cause"),
    [
        ("PreemptionByScheduler: default-scheduler", "preempted"),
        ("EvictionByEvictionAPI: drained", "evicted"),
        ("Evicted: low on memory", "evicted"),
        ("DeletionByTaintManager: deleting due to NoExecute taint", "node_lost"),
        ("TerminationByKubelet: Pod was terminated in response to imminent node shutdown", "evicted"),
        ("NodeShutdown: Pod was terminated", "node_shutdown"),
        ("OutOfcpu: Pod was rejected", "disruption"),
    ],
)
def test_restarts_total_of_a_disruption_has_its_cause(disruption: str, cause: str) -> None:
    metrics, before = OperatorMetrics(lambda: []), running()
    now = make_plan(before, failed(0, 143, disruption=disruption), pod(1)).status
    metrics.status_written(before, now)
    metrics.status_written(job(now), now)
    assert value(metrics, "yolojob_restarts_total", cause=cause) == 1
    total = sum(s.value for m in metrics.registry.collect() for s in m.samples if s.name == "yolojob_restarts_total")
    assert total == 1


def test_restarts_total_distinguishes_failures_and_deleted_pods() -> None:
    metrics, before = OperatorMetrics(lambda: []), running()
    metrics.status_written(before, make_plan(before, failed(0, 1), pod(1)).status)
    metrics.status_written(before, make_plan(before, pod(0)).status)
    assert value(metrics, "yolojob_restarts_total", cause="failure") == 1
    assert value(metrics, "yolojob_restarts_total", cause="pod_deleted") == 1


def test_time_to_running_of_a_job_that_first_ran_in_a_later_attempt_is_observed() -> None:
    """The slowest starts matter most."""
    metrics = OperatorMetrics(lambda: [])
    steps: list[YoloTrainingJobStatus] = [make_plan(job()).status]
    steps.append(make_plan(job(steps[-1]), failed(0, 1), pod(1, "Pending", started=None)).status)
    steps.append(make_plan(job(steps[-1]), pod(0, attempt=2), pod(1, attempt=2), now=after(40)).status)
    steps.append(make_plan(job(steps[-1]), failed(0, 1, attempt=2), pod(1, attempt=2), now=after(60)).status)
    steps.append(make_plan(job(steps[-1]), pod(0, attempt=3), pod(1, attempt=3), now=after(90)).status)
    before = None
    for status in steps:
        metrics.status_written(job(before), status)
        before = status
    assert value(metrics, "yolojob_time_to_running_seconds_count") == 1
    assert value(metrics, "yolojob_time_to_running_seconds_sum") == (after(40) - NOW).total_seconds() + 10


def test_job_series_are_read_once_for_each_version_and_removed_with_the_job() -> None:
    versions_read: list[int] = []
    jobs: list[tuple[tuple[str, str], int, Callable[[], YoloTrainingJobStatus]]] = []
    metrics = OperatorMetrics(lambda: jobs)

    def status(version: int) -> Callable[[], YoloTrainingJobStatus]:
        def read() -> YoloTrainingJobStatus:
            versions_read.append(version)
            return YoloTrainingJobStatus(phase=JobPhase.RUNNING, restarts=version)

        return read

    def restarts() -> float | None:
        return value(metrics, "yolojob_job_restarts", job_name="digits", kind="failure")

    jobs.append((("default", "digits"), 1, status(1)))
    assert (restarts(), restarts()) == (1, 1)
    assert value(metrics, "yolojob_jobs", phase="Running") == 1
    jobs[0] = (("default", "digits"), 2, status(2))
    assert restarts() == 2
    assert versions_read == [1, 2]
    jobs.clear()
    assert restarts() is None
    assert value(metrics, "yolojob_jobs", phase="Running") is None
