"""The same manifest, measured here and in a cluster; and a report whose money is the status' money is the pods' money."""

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

pytestmark = [pytest.mark.usefixtures("operator"), pytest.mark.timeout(900)]
PRICE = 3.6


def command(kube: Kube, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = ["python", "-m", "yolojob.cli", *arguments]
    return subprocess.run(line, cwd=folder, env=kube.environment, capture_output=True, text=True, check=False)


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    made: dict[str, Any] = documents("studied")[0]
    made["spec"]["pricing"] = {"perWorkerHour": PRICE}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(made))
    return made


def test_here_and_in_the_cluster_in_one_comparison(kube: Kube, job: dict[str, Any], tmp_path: Path) -> None:
    context = kube.run("config", "current-context").stdout.strip()
    arguments = ("compare", "job.yaml", "--on", "local", "--on", context, "--seconds", "8", "-n", kube.namespace)
    done = command(kube, tmp_path, *arguments, "--assume", "watts=50", "-o", "json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {o["target"]: o for o in json.loads(done.stdout)["options"]}
    assert set(found) == {"local", context}
    for option in found.values():
        assert option["seconds"]["basis"] == "measured"
        assert option["workers"] == 2
    there = found[context]
    assert {"queued", "scheduling", "image_pull"} <= set(there["parts"])
    running = sum(
        f["value"] for part, f in there["parts"].items() if part not in ("queued", "scheduling", "image_pull")
    )
    assert there["costParts"]["machines"]["value"] == pytest.approx(2 * PRICE * running / 3600)
    assert (tmp_path / "compare.html").exists()
    assert not [j for j in kube.get("yolotrainingjobs")["items"] if "-bench-" in j["metadata"]["name"]], "it is deleted"


def test_the_reports_money_is_the_pods_running_time(kube: Kube, job: dict[str, Any], tmp_path: Path) -> None:
    del job["spec"]["storage"]
    job["spec"]["train"]["epochs"] = 2
    job["spec"]["runPolicy"] = {"cleanPodPolicy": "None"}
    kube.apply(job)
    status = finished(kube, "studied")
    assert status["phase"] == "Succeeded", json.dumps(status, indent=1)
    seconds = 0.0
    for pod in kube.pods("studied"):
        ended = pod["status"]["containerStatuses"][0]["state"]["terminated"]
        began, end = (datetime.fromisoformat(ended[name]) for name in ("startedAt", "finishedAt"))
        seconds += (end - began).total_seconds()
    done = command(kube, tmp_path, "report", "studied", "-n", kube.namespace, "-o", "json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)["cost"]
    assert said == kube.status("studied")["cost"]
    assert said["soFar"] == pytest.approx(seconds * PRICE / 3600, abs=2 * PRICE / 3600)
    assert (tmp_path / "report.html").read_text().count("<h2>") >= 3


def test_a_bench_that_does_not_fit_says_so_from_afar(kube: Kube, job: dict[str, Any], tmp_path: Path) -> None:
    job["spec"]["train"] |= {"batch": 400, "imgsz": 2048}
    job["spec"]["workers"] = {"replicas": 1, "resources": {"limits": {"memory": "4Gi"}}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    context = kube.run("config", "current-context").stdout.strip()
    done = command(kube, tmp_path, "bench", "job.yaml", "--on", context, "-n", kube.namespace)
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
    """A service that answers as OpenCost does, with one price for every node."""
    price = 0.625
    nodes = [n["metadata"]["name"] for n in kube.get("nodes")["items"]]
    words = (
        "\n".join(f'node_total_hourly_cost{{instance="{n}",node="{n}",provider_id=""}} {price}' for n in nodes) + "\n"
    )
    container = {
        "name": "opencost",
        "image": image_names["operator"],
        "command": ["python", "-c", SERVER, words],
        "ports": [{"containerPort": 9003}],
        "readinessProbe": {"tcpSocket": {"port": 9003}, "periodSeconds": 1},
    }
    labels = {"app": "opencost"}
    kube.run("create", "namespace", "opencost")
    there = Kube(kube.kubeconfig, "opencost")
    spec = {"selector": labels, "ports": [{"port": 9003}]}
    there.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "opencost", "labels": labels},
            "spec": {"containers": [container]},
        },
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "opencost"}, "spec": spec},
    )
    there.run("wait", "--for=condition=Ready", "pod/opencost", "--timeout=60s")
    yield price
    kube.run("delete", "namespace", "opencost")


def test_opencost_tells_a_price_where_nobody_else_does(
    kube: Kube, job: dict[str, Any], opencost: float, tmp_path: Path
) -> None:
    del job["spec"]["pricing"]
    job["spec"]["workers"]["replicas"] = 1
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    context = kube.run("config", "current-context").stdout.strip()
    done = command(
        kube, tmp_path, "bench", "job.yaml", "--on", context, "--seconds", "5", "-n", kube.namespace, "-o", "json"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = json.loads(done.stdout)
    assert (found["perWorkerHour"], found["currency"]) == (opencost, "USD")
    assert "OpenCost" in found["priceWords"]
