"""A real Prometheus in the test cluster's network: it finds and scrapes the pods as the chart's monitors say."""

from __future__ import annotations

import json
import math
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from devcluster import processes, settings

LISTEN = "127.0.0.1:19090"
INTERVAL = 2
"""Seconds between scrapes: these trainings take a minute, not hours."""
RATE_INTERVAL = f"{5 * INTERVAL}s"
Points = list[tuple[float, float]]
"""(seconds since 1970, value)."""


def _relabelled(name: str) -> list[dict[str, Any]]:
    """Pods of this app.kubernetes.io/name, at their port called metrics."""
    label = "__meta_kubernetes_pod_label_app_kubernetes_io_name"
    return [
        {"source_labels": [label], "regex": name, "action": "keep"},
        {"source_labels": ["__meta_kubernetes_pod_container_port_name"], "regex": "metrics", "action": "keep"},
        {"source_labels": ["__meta_kubernetes_pod_label_yolojob_dev_spare"], "regex": "true", "action": "drop"},
        {"source_labels": ["__meta_kubernetes_pod_name"], "target_label": "pod"},
    ]


def _configuration() -> dict[str, Any]:
    pods = [{"role": "pod", "kubeconfig_file": str(settings.INSIDE_KUBECONFIG)}]
    return {
        "global": {"scrape_interval": f"{INTERVAL}s", "scrape_timeout": f"{INTERVAL}s"},
        "scrape_configs": [
            {
                "job_name": job,
                "honor_labels": True,
                "kubernetes_sd_configs": pods,
                "relabel_configs": _relabelled(name),
            }
            for job, name in (("yolojob-workers", "yolojob-trainer"), ("yolojob-operator", "yolojob-operator"))
        ],
    }


@dataclass(frozen=True)
class Prometheus:
    log: Path
    began: float

    def instant(self, expression: str, at: float | None = None) -> list[tuple[dict[str, str], float]]:
        """(labels, value) of each series at a moment; now, unless given."""
        found = self._ask("query", query=expression, **({} if at is None else {"time": f"{at:.0f}"}))
        return [(series["metric"], float(series["value"][1])) for series in found]

    def range(self, expression: str, step: int) -> list[tuple[dict[str, str], Points]]:
        """(labels, points) of each series since it began to scrape, every `step` seconds; without what is no number."""
        found = self._ask(
            "query_range", query=expression, start=f"{self.began:.0f}", end=f"{time.time():.0f}", step=str(step)
        )
        series = [(s["metric"], [(float(t), float(v)) for t, v in s["values"]]) for s in found]
        finite = [(labels, [(t, v) for t, v in points if math.isfinite(v)]) for labels, points in series]
        return [(labels, points) for labels, points in finite if points]

    def _ask(self, what: str, **parameters: str) -> list[dict[str, Any]]:
        """
        Raises:
            AssertionError: it refuses the query, and in which words.
        """
        fields = [f"--data-urlencode={key}={value}" for key, value in parameters.items()]
        curl = ["curl", "-sS", "--max-time", "30", *fields, f"http://{LISTEN}/api/v1/{what}"]
        done = subprocess.run(processes.inside(settings.NETNS, *curl), capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.stderr}{self.log.read_text()[-2000:]}"
        answer = json.loads(done.stdout)
        assert answer["status"] == "success", f"{parameters['query']}: {answer['error']}"
        return list(answer["data"]["result"])


@contextmanager
def running(folder: Path) -> Iterator[Prometheus]:
    """Debian's Prometheus, scraping from now on."""
    (folder / "prometheus.yml").write_text(yaml.safe_dump(_configuration()))
    command = [
        "prometheus",
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address={LISTEN}",
    ]
    with (folder / "prometheus.log").open("w") as log:
        server = subprocess.Popen(processes.inside(settings.NETNS, *command), stdout=log, stderr=log)
    try:
        yield Prometheus(folder / "prometheus.log", time.time())
    finally:
        server.terminate()
        server.wait()
