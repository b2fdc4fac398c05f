"""Runs many jobs against a real API server and records when they change.

Times are those at which a watch in this process shows a change; it shares the CPU cores with everything else.
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

from support import free_port, minimal

JOBS = "/apis/yolojob.dev/v1alpha1/namespaces/{}/yolotrainingjobs"
PODS = "/api/v1/namespaces/{}/pods"
CONNECTIONS = 16
"""Concurrent requests: the relay into the test cluster starts two processes for each connection."""
RETRY_SECONDS = 0.2
HZ = os.sysconf("SC_CLK_TCK")
"""Clock ticks per second in /proc/PID/stat."""


def job(name: str, workers: int, ends_after: str | None) -> dict[str, Any]:
    """Returns a job for simulated nodes whose pods succeed after a duration, or run until they are deleted."""
    annotations = {} if ends_after is None else {"devcluster/exit": "0", "devcluster/exit-after": ends_after}
    template = {
        "metadata": {"annotations": annotations},
        "spec": {"nodeSelector": {"type": "kwok"}, "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}]},
    }
    manifest = minimal(name, workers={"replicas": workers, "template": template}, storage={"uri": "s3://bucket/runs"})
    manifest["spec"]["train"] = {"batch": 16 * workers}
    return manifest


class Operator:
    """An operator process, with its CPU time, memory and metrics."""

    def __init__(self, kubeconfig: Path, namespace: str, log: Path) -> None:
        port = free_port()
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
        """Returns the user and system time since the start."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / HZ

    def peak_megabytes(self) -> float:
        """Returns the peak resident memory, in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024

    def metrics(self) -> str:
        """Returns the text of /metrics."""
        with urllib.request.urlopen(self._metrics, timeout=5) as response:
            return str(response.read().decode())

    def requests(self) -> dict[str, int]:
        """Returns counts of API requests by "VERB RESOURCE CODE", without those for the lease."""
        counts: dict[str, int] = {}
        for line in self.metrics().splitlines():
            if line.startswith("yolojob_api_requests_total{") and 'resource="leases"' not in line:
                labels, value = line[len("yolojob_api_requests_total{") :].rsplit("} ", 1)
                values = dict(part.split("=") for part in labels.replace('"', "").split(","))
                key = f"{values['verb']} {values['resource']} {values['code']}"
                counts[key] = counts.get(key, 0) + int(float(value))
        return counts

    def leads(self) -> bool:
        """Returns whether the operator holds the lease."""
        try:
            return "yolojob_leader 1.0" in self.metrics()
        except OSError:
            return False

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@dataclass
class Course:
    """Times of one job's changes, by `time.perf_counter`; 0 until the change happens."""

    created: float = 0.0
    pods: list[float] = field(default_factory=list)
    """Creation of each pod."""
    ran: dict[str, float] = field(default_factory=dict)
    """First time at which each pod was running, by name."""
    running: float = 0.0
    """Phase Running."""
    last_end: float = 0.0
    """End of the last pod."""
    done: float = 0.0
    """Phase Succeeded or Failed."""


class Fleet:
    """Creates and watches the jobs of one namespace."""

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
        """Sends a request, and returns (HTTP status, parsed body)."""
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        url = self._api.configuration.host + path
        response = await self._api.rest_client.request(method, url, headers=headers, body=body, _request_timeout=120)
        return response.status, json.loads(await response.read())

    async def create(self, body: dict[str, Any]) -> None:
        """Creates a job."""
        name = body["metadata"]["name"]
        self.courses[name] = Course()
        async with self._slots:
            self.courses[name].created = time.perf_counter()
            status, response = await self.request("POST", JOBS.format(self.namespace), body)
        assert status == 201, response

    async def _watch(self, path: str, see: Callable[[str, dict[str, Any]], None]) -> None:
        """Calls `see` for every event of a collection until cancelled."""
        status, listed = await self.request("GET", path)
        while status == 429:  # the API server has no watch cache for a new kind yet
            await asyncio.sleep(RETRY_SECONDS)
            status, listed = await self.request("GET", path)
        version = listed["metadata"]["resourceVersion"]
        session = self._api.rest_client.pool_manager
        self._watching += 1
        async with self.changed:
            self.changed.notify_all()
        while True:  # the API server closes the watch of a slow reader
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

    def _see_job(self, kind: str, body: dict[str, Any]) -> None:
        course = self.courses.get(body["metadata"]["name"])
        phase = (body.get("status") or {}).get("phase", "")
        self.phases[body["metadata"]["name"]] = phase
        if course is not None:
            if phase == "Running" and not course.running:
                course.running = time.perf_counter()
            if phase in ("Succeeded", "Failed") and not course.done:
                course.done = time.perf_counter()

    def _see_pod(self, kind: str, body: dict[str, Any]) -> None:
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
        """Waits until a condition on the watched objects holds.

        Raises:
            AssertionError: the deadline has passed.
        """

        async def wait() -> None:
            async with self.changed:
                await self.changed.wait_for(ready)

        waiting = asyncio.create_task(wait())
        done, _ = await asyncio.wait([waiting, *self._watches], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        assert done, f"not after {seconds:.0f} s: {what}"
        for task in done:
            task.result()  # raises the error of a failed watch

    async def start(self) -> None:
        """Starts the watches of jobs and pods, and waits until both receive events."""
        for path, see in ((JOBS, self._see_job), (PODS, self._see_pod)):
            self._watches.append(asyncio.create_task(self._watch(path.format(self.namespace), see)))
        await self.until("both watches are open", lambda: self._watching == len(self._watches), 30)

    async def close(self) -> None:
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)


@asynccontextmanager
async def fleet(kubeconfig: Path, namespace: str) -> AsyncIterator[Fleet]:
    """Opens a `Fleet` that is already watching."""
    await config.load_kube_config(str(kubeconfig))
    configuration = client.Configuration.get_default_copy()
    configuration.connection_pool_maxsize = CONNECTIONS + 8
    async with client.ApiClient(configuration) as api:
        jobs = Fleet(api, namespace)
        try:
            await jobs.start()
            yield jobs
        finally:
            await jobs.close()


def spread(values: list[float]) -> str:
    """Returns "p50 / p95" of seconds."""
    ordered = sorted(values)
    p95 = ordered[min(int(len(ordered) * 0.95), len(ordered) - 1)]
    return f"{statistics.median(ordered):.2f} / {p95:.2f}"
