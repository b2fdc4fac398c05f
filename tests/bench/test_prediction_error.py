"""Predicted against real duration: a bench of less than a minute, then the whole training."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from support.harness import NETWORKS, Report

from yolojob.api.constants import Mode
from yolojob.api.job import YoloTrainingJob
from yolojob.api.manifest import parse
from yolojob.api.measurement import Measurement
from yolojob.client.local_run import LocalRun, Places
from yolojob.estimation import prediction

JOBS = {
    "yolo26n-320": ("yolo26n", {"imgsz": 320, "epochs": 9, "close_mosaic": 4}),
    "yolo26n-160": ("yolo26n", {"imgsz": 160, "epochs": 20, "close_mosaic": 8}),
    "small-320": ("small", {"imgsz": 320, "epochs": 20, "close_mosaic": 8}),
    "small-160": ("small", {"imgsz": 160, "epochs": 36}),
}
"""Two networks, two image sizes; each trains for about a minute."""
BENCH_SECONDS = 45
MAX_ERROR_SAME_WORKERS, MAX_ERROR_TWO_WORKERS = 0.10, 0.20
"""Promised relative errors: for the number of workers of the bench, and for two workers from a bench of one."""

pytestmark = pytest.mark.timeout(900)


def job(name: str, workers: int) -> YoloTrainingJob:
    network, train = JOBS[name]
    document: dict[str, Any] = {
        "apiVersion": "yolojob.dev/v1alpha1",
        "kind": "YoloTrainingJob",
        "metadata": {"name": name},
        "spec": {
            "model": NETWORKS[network],
            "dataset": {"uri": "builtin://digits"},
            "train": {"batch": 16, "patience": 100, **train},
            "workers": {"replicas": workers},
        },
    }
    return parse(document)


def run(job: YoloTrainingJob, folder: Path, cache: Path, mode: Mode) -> tuple[float, Any]:
    """Run a job in this mode: (seconds of wall clock, report)."""
    local = LocalRun(job, Places(runs=folder, volumes=folder, cache=cache), mode=mode, seconds=BENCH_SECONDS)
    began = time.monotonic()
    local.start()
    code = local.wait(600)
    took = time.monotonic() - began
    assert code == 0, local.log.read_text()[-3000:]
    return took, local.report(0)


@pytest.mark.parametrize("name", JOBS)
def test_prediction_from_a_bench_is_close_to_the_real_duration(
    name: str, tmp_path: Path, cache: Path, report: Report
) -> None:
    run(job(name, 1), tmp_path / "inspect", cache, Mode.INSPECT)  # so that the dataset is staged before the bench
    _, bench = run(job(name, 1), tmp_path / "bench", cache, Mode.BENCH)
    measured: Measurement = bench.measurement
    assert measured.took_seconds <= 60
    for workers, promised in ((1, MAX_ERROR_SAME_WORKERS), (2, MAX_ERROR_TWO_WORKERS)):
        predicted = prediction.predict_from_bench(
            job(name, 1).spec, measured, prediction.WorkerSetup(workers=workers, shared=True, cached=True)
        )
        wall, whole = run(job(name, workers), tmp_path / f"run-{workers}", cache, Mode.TRAIN)
        error = predicted.total.value / wall - 1
        report.add(
            "prediction",
            job=name,
            workers=workers,
            predicted=predicted.total.value,
            wall=wall,
            error=error,
            low=predicted.total.low,
            high=predicted.total.high,
        )
        parts = whole.timing.parts
        for part, figure in predicted.parts.items():
            real = parts.get(part, 0.0) + (parts.get("ema", 0.0) if part == "optimizer" else 0.0)
            print(f"    {part:12} {figure.value:7.2f} predicted, {real:7.2f} measured")
        assert abs(error) <= promised, (predicted.total, wall)
