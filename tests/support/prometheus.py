"""Runs a real Prometheus in the test cluster's network; it scrapes the pods that the chart's monitors select."""

from __future__ import annotations

import json
import math
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from devcluster import processes, settings

from support import eventually
from support.kube import Kube

LISTEN = "127.0.0.1:19090"
SCRAPE_SECONDS = 2
"""Interval of the scrapes: the tests' trainings take a minute, not hours."""
RATE_INTERVAL = f"{5 * SCRAPE_SECONDS}s"
Points = list[tuple[float, float]]
"""(seconds since 1970, value)."""
JOBS = {"yolojob-workers": "yolojob-trainer", "yolojob-operator": "yolojob-operator"}
"""Names of the scrape jobs, with the app.kubernetes.io/name of their pods."""


def _configuration(folder: Path) -> dict[str, Any]:
    return {
        "global": {"scrape_interval": f"{SCRAPE_SECONDS}s", "scrape_timeout": f"{SCRAPE_SECONDS}s"},
        "scrape_configs": [
            {"job_name": job, "honor_labels": True, "file_sd_configs": [{"files": [str(folder / f"{job}.json")]}]}
            for job in JOBS
        ],
    }


def _targets(pods: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Returns what the chart's monitors select: running pods of this name, at their port `metrics`, without spares."""
    targets = []
    for pod in pods:
        labels, address = pod["metadata"]["labels"], pod["status"].get("podIP")
        if not address or labels.get("app.kubernetes.io/name") != name or labels.get("yolojob.dev/spare") == "true":
            continue
        ports = [p for c in pod["spec"]["containers"] for p in c.get("ports", []) if p.get("name") == "metrics"]
        targets += [
            {"targets": [f"{address}:{p['containerPort']}"], "labels": {"pod": pod["metadata"]["name"]}} for p in ports
        ]
    return targets


def _discover(kube: Kube, folder: Path, stopped: threading.Event) -> None:
    """Writes the target files until stopped: Debian builds Prometheus without its Kubernetes service discovery."""
    while not stopped.is_set():
        items = kube.get("pods", "--all-namespaces", "--field-selector", "status.phase=Running").get("items", [])
        for job, name in JOBS.items():
            partial = folder / f".{job}.json"
            partial.write_text(json.dumps(_targets(items, name)))
            partial.rename(folder / f"{job}.json")
        stopped.wait(SCRAPE_SECONDS)


@dataclass(frozen=True)
class Prometheus:
    """A running server."""

    log: Path
    began: float
    """Start of the scrapes, in seconds since 1970."""

    def ready(self) -> bool:
        """Returns whether the server answers queries."""
        curl = ["curl", "-fsS", "--max-time", "5", f"http://{LISTEN}/-/ready"]
        done = subprocess.run(processes.inside(settings.NETNS, *curl), capture_output=True, check=False)
        return done.returncode == 0

    def query_instant(self, expression: str, at: float | None = None) -> list[tuple[dict[str, str], float]]:
        """Returns (labels, value) of each series at `at` (seconds since 1970), by default now."""
        result = self._ask("query", query=expression, **({} if at is None else {"time": f"{at:.0f}"}))
        return [(series["metric"], float(series["value"][1])) for series in result]

    def query_range(self, expression: str, step: int) -> list[tuple[dict[str, str], Points]]:
        """Returns (labels, finite points) of each series since the first scrape, every `step` seconds."""
        result = self._ask(
            "query_range", query=expression, start=f"{self.began:.0f}", end=f"{time.time():.0f}", step=str(step)
        )
        series = [(s["metric"], [(float(t), float(v)) for t, v in s["values"]]) for s in result]
        finite = [(labels, [(t, v) for t, v in points if math.isfinite(v)]) for labels, points in series]
        return [(labels, points) for labels, points in finite if points]

    def _ask(self, what: str, **parameters: str) -> list[dict[str, Any]]:
        """Sends one query.

        Raises:
            AssertionError: the server refuses the query; with its message.
        """
        fields = [option for key, value in parameters.items() for option in ("--data-urlencode", f"{key}={value}")]
        curl = ["curl", "-sS", "--max-time", "30", *fields, f"http://{LISTEN}/api/v1/{what}"]
        done = subprocess.run(processes.inside(settings.NETNS, *curl), capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.stderr}{self.log.read_text()[-2000:]}"
        response = json.loads(done.stdout)
        assert response["status"] == "success", f"{parameters['query']}: {response['error']}"
        return list(response["data"]["result"])


@contextmanager
def running(kube: Kube, folder: Path) -> Iterator[Prometheus]:
    """Starts Debian's Prometheus, yields it once it is ready, and stops it."""
    (folder / "prometheus.yml").write_text(yaml.safe_dump(_configuration(folder)))
    command = [
        "prometheus",
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address={LISTEN}",
    ]
    stopped = threading.Event()
    discovery = threading.Thread(target=_discover, args=(kube, folder, stopped))
    discovery.start()
    with (folder / "prometheus.log").open("w") as log:
        server = subprocess.Popen(processes.inside(settings.NETNS, *command), stdout=log, stderr=log)
    prometheus = Prometheus(folder / "prometheus.log", time.time())
    try:
        eventually(prometheus.ready, f"Prometheus is ready; its log is {prometheus.log}", seconds=60)
        yield prometheus
    finally:
        stopped.set()
        discovery.join()
        server.terminate()
        server.wait()
