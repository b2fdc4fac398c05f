"""Measures the real operator with many jobs of 4 pods, a real API server and simulated nodes.

Needs the test cluster for itself: `python -m devcluster up --nodes 0 --gpu-nodes 30` (simulated nodes of 200 pods
each).
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import eventually
from support.fleet import Fleet, Operator, fleet, job, spread
from support.harness import Report
from support.kube import Kube, cluster
from yolojob_operator.control import watch_audit

pytestmark = pytest.mark.timeout(1800)
WORKERS = 4
"""Pods of each job."""


@pytest.fixture
def kube() -> Iterator[Kube]:
    """A new namespace."""
    with cluster() as admin:
        name = f"scale-{uuid.uuid4().hex[:8]}"
        admin.run("create", "namespace", name)
        yield Kube(admin.kubeconfig, name)
        admin.run("delete", "yolotrainingjobs", "--all", "--namespace", name)
        admin.run("delete", "namespace", name)


@pytest.fixture
def operator(kube: Kube, tmp_path: Path) -> Iterator[Operator]:
    """An operator that leads; its log must not contain a traceback."""
    running = Operator(kube.kubeconfig, kube.namespace, tmp_path / "log")
    eventually(running.leads, "the operator leads", seconds=30)
    yield running
    running.stop()
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log, log[-3000:]


async def measure_job(jobs: Fleet, name: str) -> tuple[float, float, float]:
    """Runs one job on an idle cluster.

    Returns:
        Seconds until all pods exist, until the status is Running, and from the deletion of a pod to that of the others.
    """
    await jobs.create(job(name, WORKERS, None))
    course = jobs.courses[name]
    await jobs.until("it runs", lambda: bool(course.running), 30)
    deleted: list[float] = []

    def see(kind: str, body: dict[str, Any]) -> None:
        if body["metadata"]["labels"]["yolojob.dev/attempt"] == "1" and body["metadata"].get("deletionTimestamp"):
            deleted.append(time.perf_counter())

    jobs.on_pod = see
    count = len(course.pods)
    start = time.perf_counter()
    await jobs.request("DELETE", f"/api/v1/namespaces/{jobs.namespace}/pods/{name}-worker-2")
    await jobs.until("the pods of a new attempt exist", lambda: len(course.pods) == count + WORKERS, 30)
    print(f"others deleted after {deleted[-1] - start:.3f} s, new pods after {course.pods[-1] - start:.3f} s")
    return course.pods[WORKERS - 1] - course.created, course.running - course.created, deleted[-1] - start


def test_operator_handles_one_job_on_an_idle_cluster(kube: Kube, operator: Operator, report: Report) -> None:
    async def measure() -> list[tuple[float, float, float]]:
        async with fleet(kube.kubeconfig, kube.namespace) as jobs:
            return [await measure_job(jobs, f"one-{i}") for i in range(5)]

    rows = asyncio.run(measure())
    pods, running, lost = (sorted(column)[2] for column in zip(*rows, strict=True))
    report.add("one job", pods=pods, running=running, lost=lost)
    # Medians of 5 jobs; the limits are five times the usual values on an idle machine.
    assert (pods < 0.5, running < 1.0, lost < 0.5) == (True, True, True)


def is_idle(operator: Operator, seconds: float = 5) -> bool:
    """Returns whether the operator sends no request to the API server for some time."""
    before = operator.requests()
    time.sleep(seconds)
    return operator.requests() == before


@pytest.mark.parametrize("count", [int(n) for n in os.environ.get("YOLOJOB_BENCH_JOBS", "100,300,1000").split(",")])
def test_operator_handles_many_jobs(kube: Kube, operator: Operator, report: Report, count: int) -> None:
    ends_after = f"{max(10, count // 10)}s"

    async def measure() -> Fleet:
        async with fleet(kube.kubeconfig, kube.namespace) as jobs:
            names = [f"many-{i}" for i in range(count)]
            await asyncio.gather(*(jobs.create(job(name, WORKERS, ends_after)) for name in names))
            await jobs.until("all jobs end", lambda: all(c.done for c in jobs.courses.values()), 900)
            return jobs

    before, cpu = operator.requests(), operator.cpu_seconds()
    jobs = asyncio.run(measure())
    courses = list(jobs.courses.values())
    requests = {key: n - before.get(key, 0) for key, n in operator.requests().items()}
    row = {
        "jobs": count,
        "created in": round(max(c.created for c in courses) - min(c.created for c in courses), 2),
        "pods exist": spread([sorted(c.pods)[WORKERS - 1] - c.created for c in courses]),
        "Running": spread([c.running - c.created for c in courses if c.running]),
        "last pod runs → Running": spread([c.running - max(c.ran.values()) for c in courses if c.running]),
        "ended → Succeeded": spread([c.done - c.last_end for c in courses]),
        "requests per job": round(sum(requests.values()) / count, 1),
        "CPU seconds": round(operator.cpu_seconds() - cpu, 1),
        "peak MB": round(operator.peak_megabytes()),
    }
    print(row)
    print({key: n for key, n in requests.items() if n})
    assert all(phase == "Succeeded" for phase in jobs.phases.values()), jobs.phases
    assert all(len(c.pods) == WORKERS for c in courses), "a pod was created twice"
    assert all(c.running for c in courses), "an update of the status was lost"
    eventually(lambda: is_idle(operator), "the last status is written", seconds=180)
    idle = operator.cpu_seconds()
    # One period of the operator's longest periodic task: this is the measurement.
    seconds = max(
        watch_audit.AUDIT_INTERVAL_SECONDS, watch_audit.AUDIT_INTERVAL_SECONDS_PER_OBJECT * count * (1 + WORKERS)
    )
    time.sleep(seconds)
    row["idle CPU"] = round((operator.cpu_seconds() - idle) / seconds, 4)
    print(f"idle CPU with {count} finished jobs: {row['idle CPU']:.2%} of a core")
    report.add("many jobs", **row)
