"""`bench`, `compare` and `report` with a real cluster: measurements, prices and costs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.examples import documents, finished
from support.kube import Kube

pytestmark = [pytest.mark.usefixtures("operator"), pytest.mark.timeout(1800)]
PRICE = 3.6
"""USD per worker and hour."""


def run(kube: Kube, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in a folder, with the cluster's kubeconfig."""
    command = ["python", "-m", "yolojob.cli", *arguments]
    return subprocess.run(command, cwd=folder, env=kube.environment, capture_output=True, text=True, check=False)


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    """The example job with a price, also written as job.yaml."""
    document: dict[str, Any] = documents("estimated")[0]
    document["spec"]["pricing"] = {"perWorkerHour": PRICE}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(document))
    return document


def test_compare_measures_this_machine_and_the_cluster(kube: Kube, job: dict[str, Any], tmp_path: Path) -> None:
    context = kube.run("config", "current-context").stdout.strip()
    arguments = ("compare", "job.yaml", "--on", "local", "--on", context, "--seconds", "8", "-n", kube.namespace)
    done = run(kube, tmp_path, *arguments, "--assume", "watts=50", "-o", "json")
    assert done.returncode == 0, done.stdout + done.stderr
    options = {option["target"]: option for option in json.loads(done.stdout)["options"]}
    assert set(options) == {"local", context}
    for option in options.values():
        assert option["seconds"]["basis"] == "measured"
        assert option["workers"] == 2
    cluster = options[context]
    waits = {"queued", "scheduling", "image_pull"}
    assert waits <= set(cluster["parts"])
    running = sum(estimate["value"] for part, estimate in cluster["parts"].items() if part not in waits)
    assert cluster["costParts"]["machines"]["value"] == pytest.approx(2 * PRICE * running / 3600)
    assert (tmp_path / "compare.html").exists()
    assert not [j for j in kube.get("yolotrainingjobs")["items"] if "-bench-" in j["metadata"]["name"]], (
        "the bench job is still there"
    )


def test_report_cost_is_price_times_running_time_of_the_pods(kube: Kube, job: dict[str, Any], tmp_path: Path) -> None:
    del job["spec"]["storage"]
    job["spec"]["train"]["epochs"] = 2
    job["spec"]["runPolicy"] = {"cleanPodPolicy": "None"}
    kube.apply(job)
    status = finished(kube, "estimated")
    assert status["phase"] == "Succeeded", json.dumps(status, indent=1)
    seconds = 0.0
    for pod in kube.pods("estimated"):
        terminated = pod["status"]["containerStatuses"][0]["state"]["terminated"]
        start, end = (datetime.fromisoformat(terminated[name]) for name in ("startedAt", "finishedAt"))
        seconds += (end - start).total_seconds()
    done = run(kube, tmp_path, "report", "estimated", "-n", kube.namespace, "-o", "json")
    assert done.returncode == 0, done.stderr
    cost = json.loads(done.stdout)["cost"]
    assert cost == kube.status("estimated")["cost"]
    assert cost["soFar"] == pytest.approx(seconds * PRICE / 3600, abs=2 * PRICE / 3600)
    assert (tmp_path / "report.html").read_text().count("<h2>") >= 3


def test_bench_in_cluster_with_too_large_batch_states_the_missing_memory(
    kube: Kube, job: dict[str, Any], tmp_path: Path
) -> None:
    job["spec"]["train"] |= {"batch": 400, "imgsz": 2048}
    job["spec"]["workers"] = {"replicas": 1, "resources": {"limits": {"memory": "4Gi"}}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    context = kube.run("config", "current-context").stdout.strip()
    done = run(kube, tmp_path, "bench", "job.yaml", "--on", context, "-n", kube.namespace)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "GiB are missing; the largest batch that fits is" in done.stderr


SERVER = """
import http.server, sys

class Metrics(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(sys.argv[1].encode())

http.server.HTTPServer(("", 9003), Metrics).serve_forever()
"""


@pytest.fixture
def opencost(kube: Kube, image_names: dict[str, str]) -> Iterator[float]:
    """A service that exports metrics like OpenCost, with the same price for every node; yields the price in USD per
    hour.
    """
    price = 0.625
    nodes = [n["metadata"]["name"] for n in kube.get("nodes")["items"]]
    metrics = (
        "\n".join(f'node_total_hourly_cost{{instance="{n}",node="{n}",provider_id=""}} {price}' for n in nodes) + "\n"
    )
    container = {
        "name": "opencost",
        "image": image_names["operator"],
        "command": ["python", "-c", SERVER, metrics],
        "ports": [{"containerPort": 9003}],
        "readinessProbe": {"tcpSocket": {"port": 9003}, "periodSeconds": 1},
    }
    labels = {"app": "opencost"}
    kube.run("create", "namespace", "opencost")
    namespace = Kube(kube.kubeconfig, "opencost")
    spec = {"selector": labels, "ports": [{"port": 9003}]}
    namespace.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "opencost", "labels": labels},
            "spec": {"containers": [container]},
        },
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "opencost"}, "spec": spec},
    )
    namespace.run("wait", "--for=condition=Ready", "pod/opencost", "--timeout=60s")
    yield price
    kube.run("delete", "namespace", "opencost")


def test_bench_without_price_in_manifest_takes_it_from_opencost(
    kube: Kube, job: dict[str, Any], opencost: float, tmp_path: Path
) -> None:
    del job["spec"]["pricing"]
    job["spec"]["workers"]["replicas"] = 1
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    context = kube.run("config", "current-context").stdout.strip()
    done = run(
        kube, tmp_path, "bench", "job.yaml", "--on", context, "--seconds", "5", "-n", kube.namespace, "-o", "json"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (record,) = json.loads(done.stdout)
    assert (record["perWorkerHour"], record["currency"]) == (opencost, "USD")
    assert "OpenCost" in record["priceSource"]
