"""A job of each task on a real cluster: it loses a worker in the middle, and succeeds with the metrics of its task."""

from __future__ import annotations

import json

import pytest
from devcluster import settings
from support.examples import EXAMPLES, documents, finished, training
from support.kube import Kube

pytestmark = [pytest.mark.usefixtures("operator"), pytest.mark.timeout(1800)]

MAIN_METRICS = {
    "segment": "mAP50-95(M)",
    "pose": "mAP50-95(P)",
    "obb": "mAP50-95(B)",
    "classify": "accuracy_top1",
    "semantic": "mIoU",
    "depth": "delta1",
}


@pytest.mark.parametrize(("task", "volume"), [(task, task) for task in MAIN_METRICS], indirect=["volume"])
def test_job_of_a_task_with_a_lost_worker_succeeds(kube: Kube, task: str, volume: str) -> None:
    example = EXAMPLES / f"digits-{task}.yaml"
    kube.apply(*documents(volume, example, epochs=3))
    before = training(kube, volume, 1)
    kube.run("delete", "pod", f"{volume}-worker-1", "--wait=false")
    status = finished(kube, volume)
    assert status["phase"] == "Succeeded", json.dumps(status, indent=1)
    assert status["attempt"] == before["attempt"] + 1
    assert status["disruptions"] == 1
    metric = MAIN_METRICS[task]
    result = status["result"]
    assert result["mainMetric"] == metric
    assert result["score"] == pytest.approx(result["metrics"][metric], abs=1e-4)
    header, row = kube.run("get", "ytj", volume, "--output=wide").stdout.splitlines()
    assert header.split()[-2:] == ["TASK", "METRIC"]
    assert row.split()[-1] == metric
    if kube.is_devcluster:
        folder = settings.STATE / "volumes" / volume
        assert (folder / "weights" / "best.pt").stat().st_size > 10_000
        assert (folder / "predictions.jpg").read_bytes().startswith(b"\xff\xd8")
