"""Many jobs, by the real operator and a real API server with simulated nodes: 4 pods each.

Needs the test cluster to itself: `python -m devcluster up --nodes 0 --gpu-nodes 30` (simulated nodes of 200 pods each).
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


@pytest.fixture
def kube() -> Iterator[Kube]:
    with cluster() as found:
        name = f"scale-{uuid.uuid4().hex[:8]}"
        found.run("create", "namespace", name)
        yield Kube(found.kubeconfig, name)
        found.run("delete", "yolotrainingjobs", "--all", "--namespace", name)
        found.run("delete", "namespace", name)


@pytest.fixture
def operator(kube: Kube, tmp_path: Path) -> Iterator[Operator]:
    running = Operator(kube.kubeconfig, kube.namespace, tmp_path / "log")
    eventually(running.leads, "it leads", seconds=30)
    yield running
    running.stop()
    words = (tmp_path / "log").read_text()
    assert "Traceback" not in words, words[-3000:]


async def one(found: Fleet, name: str) -> tuple[float, float, float]:
    """(all pods exist, Running in the status, a new gang exists after a pod was deleted) of one job on an idle cluster."""
    await found.create(job(name, WORKERS, None))
    course = found.courses[name]
    await found.until("it runs", lambda: bool(course.running), 30)
    answered: list[float] = []

    def see(kind: str, body: dict[str, Any]) -> None:
        if body["metadata"]["labels"]["yolojob.dev/attempt"] == "1" and body["metadata"].get("deletionTimestamp"):
            answered.append(time.perf_counter())

    found.on_pod = see
    count = len(course.pods)
    began = time.perf_counter()
    await found.request("DELETE", f"/api/v1/namespaces/{found.namespace}/pods/{name}-worker-2")
    await found.until("a new gang", lambda: len(course.pods) == count + WORKERS, 30)
    print(f"others deleted after {answered[-1] - began:.3f}, new gang after {course.pods[-1] - began:.3f}")
    return course.pods[WORKERS - 1] - course.created, course.running - course.created, answered[-1] - began


def test_one_job_on_an_idle_cluster(kube: Kube, operator: Operator, report: Report) -> None:
    async def measure() -> list[tuple[float, float, float]]:
        async with fleet(kube.kubeconfig, kube.namespace) as found:
            return [await one(found, f"one-{i}") for i in range(5)]

    rows = asyncio.run(measure())
    pods, runs, lost = (sorted(column)[2] for column in zip(*rows, strict=True))
    report.add("one job", pods=pods, running=runs, lost=lost)
    # Five times what it takes on an idle machine: slower than that is another kind of thing.
    assert (pods < 0.5, runs < 1.0, lost < 0.5) == (True, True, True)


def silent(operator: Operator, seconds: float = 5) -> bool:
    """Whether it asks nothing of the API server for a while."""
    before = operator.requests()
    time.sleep(seconds)
    return operator.requests() == before


@pytest.mark.parametrize("count", [int(n) for n in os.environ.get("YOLOJOB_BENCH_JOBS", "100,300,1000").split(",")])
def test_many_jobs(kube: Kube, operator: Operator, report: Report, count: int) -> None:
    ends_after = f"{max(10, count // 10)}s"

    async def measure() -> Fleet:
        async with fleet(kube.kubeconfig, kube.namespace) as found:
            names = [f"many-{i}" for i in range(count)]
            await asyncio.gather(*(found.create(job(name, WORKERS, ends_after)) for name in names))
            await found.until("all end", lambda: all(c.done for c in found.courses.values()), 900)
            return found

    before, cpu = operator.requests(), operator.cpu_seconds()
    found = asyncio.run(measure())
    courses = list(found.courses.values())
    made = {key: n - before.get(key, 0) for key, n in operator.requests().items()}
    row = {
        "jobs": count,
        "created in": round(max(c.created for c in courses) - min(c.created for c in courses), 2),
        "pods exist": spread([sorted(c.pods)[WORKERS - 1] - c.created for c in courses]),
        "Running": spread([c.running - c.created for c in courses if c.running]),
        "last pod runs → Running": spread([c.running - max(c.ran.values()) for c in courses if c.running]),
        "ended → Succeeded": spread([c.done - c.last_end for c in courses]),
        "requests per job": round(sum(made.values()) / count, 1),
        "CPU seconds": round(operator.cpu_seconds() - cpu, 1),
        "peak MB": round(operator.peak_megabytes()),
    }
    print(row)
    print({key: n for key, n in made.items() if n})
    assert all(phase == "Succeeded" for phase in found.phases.values()), found.phases
    assert all(len(c.pods) == WORKERS for c in courses), "no pod twice"
    assert all(c.running for c in courses), "no update was lost"
    eventually(lambda: silent(operator), "the last words are written", seconds=180)
    idle = operator.cpu_seconds()
    # As long as the longest of the operator's own rounds.
    seconds = max(
        watch_audit.AUDIT_INTERVAL_SECONDS, watch_audit.AUDIT_INTERVAL_SECONDS_PER_OBJECT * count * (1 + WORKERS)
    )
    time.sleep(seconds)
    row["idle CPU"] = round((operator.cpu_seconds() - idle) / seconds, 4)
    print(f"idle CPU with {count} finished jobs: {row['idle CPU']:.2%} of a core")
    report.add("many jobs", **row)
