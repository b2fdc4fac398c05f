"""Many jobs at once against a real API server, and a stopwatch beside it: what is created, seen, and when.

Times are those at which a watch of our own shows a change, in this process; it shares the two cores with everything else.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kubernetes.aio import client, config

from support import minimal

JOBS = "/apis/yolojob.dev/v1alpha1/namespaces/{}/yolotrainingjobs"
PODS = "/api/v1/namespaces/{}/pods"
CONNECTIONS = 16
"""Requests at once: each connection is two processes of the relay into the cluster."""
RETRY_SECONDS = 0.2
HZ = os.sysconf("SC_CLK_TCK")


def job(name: str, workers: int, ends_after: str | None) -> dict[str, Any]:
    """A job on simulated nodes, whose pods end well after a time, or never."""
    annotations = {} if ends_after is None else {"devcluster/exit": "0", "devcluster/exit-after": ends_after}
    template = {
        "metadata": {"annotations": annotations},
        "spec": {"nodeSelector": {"type": "kwok"}, "tolerations": [{"operator": "Exists"}]},
    }
    made = minimal(name, workers={"replicas": workers, "template": template}, storage={"uri": "s3://bucket/runs"})
    made["spec"]["train"] = {"batch": 16 * workers}
    return made


class Operator:
    """The operator's process."""

    def __init__(self, kubeconfig: Path, namespace: str, log: Path, port: int = 18099) -> None:
        self._metrics = f"http://127.0.0.1:{port}/metrics"
        command = [
            sys.executable,
            "-m",
            "yolojob_operator",
            "--namespace",
            namespace,
            "--listen",
            f"127.0.0.1:{port}",
        ]
        with log.open("ab") as sink:
            self.process = subprocess.Popen(
                command, env={**os.environ, "KUBECONFIG": str(kubeconfig)}, stdout=sink, stderr=sink
            )

    def cpu_seconds(self) -> float:
        words = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / HZ

    def peak_megabytes(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024

    def metrics(self) -> str:
        with urllib.request.urlopen(self._metrics, timeout=5) as answer:
            return str(answer.read().decode())

    def requests(self) -> dict[str, int]:
        """Requests so far by verb and resource, without those for the lease."""
        found: dict[str, int] = {}
        for line in self.metrics().splitlines():
            if line.startswith("yolojob_api_requests_total{") and 'resource="leases"' not in line:
                labels, value = line[len("yolojob_api_requests_total{") :].rsplit("} ", 1)
                words = dict(part.split("=") for part in labels.replace('"', "").split(","))
                key = f"{words['verb']} {words['resource']} {words['code']}"
                found[key] = found.get(key, 0) + int(float(value))
        return found

    def leads(self) -> bool:
        try:
            return "yolojob_leader 1.0" in self.metrics()
        except OSError:
            return False

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@dataclass
class Course:
    """What happened to one job, on this process' clock."""

    created: float = 0.0
    pods: list[float] = field(default_factory=list)
    ran: dict[str, float] = field(default_factory=dict)
    """When each pod ran first."""
    running: float = 0.0
    last_end: float = 0.0
    done: float = 0.0


class Fleet:
    """Jobs of one namespace, watched."""

    def __init__(self, api: client.ApiClient, namespace: str) -> None:
        self._api, self.namespace = api, namespace
        self.courses: dict[str, Course] = {}
        self.changed = asyncio.Condition()
        self._slots = asyncio.Semaphore(CONNECTIONS)
        self.phases: dict[str, str] = {}
        self.on_pod: Callable[[str, dict[str, Any]], None] = lambda kind, body: None
        self._watches: list[asyncio.Task[None]] = []
        self._watching = 0

    async def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        url = self._api.configuration.host + path
        answer = await self._api.rest_client.request(method, url, headers=headers, body=body, _request_timeout=120)
        return answer.status, json.loads(await answer.read())

    async def create(self, body: dict[str, Any]) -> None:
        name = body["metadata"]["name"]
        self.courses[name] = Course()
        async with self._slots:
            self.courses[name].created = time.perf_counter()
            status, answer = await self.request("POST", JOBS.format(self.namespace), body)
        assert status == 201, answer

    async def watch(self, path: str, see: Callable[[str, dict[str, Any]], None]) -> None:
        """Watch until cancelled."""
        status, listed = await self.request("GET", path)
        while status == 429:  # of a kind that is new to it, the API server has no watch cache yet
            await asyncio.sleep(RETRY_SECONDS)
            status, listed = await self.request("GET", path)
        version = listed["metadata"]["resourceVersion"]
        session = self._api.rest_client.pool_manager
        self._watching += 1
        while True:  # the API server ends the watch of a reader that is too slow for it
            url = f"{self._api.configuration.host}{path}?watch=1&resourceVersion={version}"
            async with session.get(
                url, ssl=self._api.rest_client.ssl_context, timeout=None, read_bufsize=1 << 24, raise_for_status=True
            ) as stream:
                async for line in stream.content:
                    event = json.loads(line)
                    assert event["type"] != "ERROR", event
                    version = event["object"]["metadata"]["resourceVersion"]
                    see(event["type"], event["object"])
                    async with self.changed:
                        self.changed.notify_all()

    def see_job(self, kind: str, body: dict[str, Any]) -> None:
        course = self.courses.get(body["metadata"]["name"])
        phase = (body.get("status") or {}).get("phase", "")
        self.phases[body["metadata"]["name"]] = phase
        if course is not None:
            if phase == "Running" and not course.running:
                course.running = time.perf_counter()
            if phase in ("Succeeded", "Failed") and not course.done:
                course.done = time.perf_counter()

    def see_pod(self, kind: str, body: dict[str, Any]) -> None:
        self.on_pod(kind, body)
        course = self.courses.get(body["metadata"]["labels"].get("yolojob.dev/job-name", ""))
        if course is None:
            return
        if kind == "ADDED":
            course.pods.append(time.perf_counter())
        if body["status"].get("phase") == "Running":
            course.ran.setdefault(body["metadata"]["name"], time.perf_counter())
        if body["status"].get("phase") in ("Succeeded", "Failed") and kind == "MODIFIED":
            course.last_end = time.perf_counter()

    async def until(self, what: str, ready: Callable[[], bool], seconds: float) -> None:
        async def wait() -> None:
            async with self.changed:
                await self.changed.wait_for(ready)

        waiting = asyncio.create_task(wait())
        done, _ = await asyncio.wait([waiting, *self._watches], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        assert done, f"not after {seconds:.0f} s: {what}"
        for task in done:
            task.result()  # a watch that broke says why

    async def look(self) -> None:
        """Begin to watch."""
        for path, see in ((JOBS, self.see_job), (PODS, self.see_pod)):
            self._watches.append(asyncio.create_task(self.watch(path.format(self.namespace), see)))
        end = time.monotonic() + 30
        while self._watching < len(self._watches):
            assert time.monotonic() < end, "nothing can be watched"
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)


@asynccontextmanager
async def fleet(kubeconfig: Path, namespace: str) -> AsyncIterator[Fleet]:
    await config.load_kube_config(str(kubeconfig))
    configuration = client.Configuration.get_default_copy()
    configuration.connection_pool_maxsize = CONNECTIONS + 8
    async with client.ApiClient(configuration) as api:
        made = Fleet(api, namespace)
        try:
            await made.look()
            yield made
        finally:
            await made.close()


def spread(values: list[float]) -> str:
    """p50 and p95, in seconds."""
    ordered = sorted(values)
    p95 = ordered[min(int(len(ordered) * 0.95), len(ordered) - 1)]
    return f"{statistics.median(ordered):.2f} / {p95:.2f}"
