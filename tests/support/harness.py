"""Benchmarks: every result is a ratio of measurements that alternate on this machine in one run."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from yolojob.api.manifest import parse
from yolojob.client.local_run import LocalRun, Places

HERE = Path(__file__).parent
IMAGES = 400
"""Training images of builtin://digits."""
NETWORKS: dict[str, dict[str, Any]] = {
    "yolo26n": {"name": "yolo26n.yaml"},
    "small": {"name": "yolo11n.yaml", "scale": [0.33, 0.0625, 256]},
    "digits": {"name": "yolo11n.yaml", "scale": [0.5, 0.125, 512]},
}


class Report:
    """Prints rows of results and keeps them; the fixture `report` writes them to the file YOLOJOB_BENCH_OUT."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, bench: str, **row: Any) -> None:
        self.rows.append({"bench": bench, **row})
        print("  ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in self.rows[-1].items()))


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "")
    return f"{names[0] if names else platform.machine()}{', avx512_bf16' if 'avx512_bf16' in flags else ''}"


def script(name: str, options: dict[str, Any], environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Run one of the scripts in this folder; return the last line of its output, which is JSON."""
    done = subprocess.run(
        [sys.executable, str(HERE / name), json.dumps(options)],
        env={**os.environ, **(environment or {}), "YOLO_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def network_file(network: str, folder: Path) -> str:
    """Write the description of a network for stock Ultralytics; return the path."""
    return model_file(NETWORKS[network], folder)


def model_file(model: dict[str, Any], folder: Path) -> str:
    """Write the description of spec.model for stock Ultralytics; return the path."""
    from yolojob_trainer.model.resolve import resolve

    from yolojob.api.spec import ModelRef

    source = resolve(ModelRef.model_validate(model), volumes=folder, cache=folder)
    path = folder / f"network-{model['name']}"
    path.write_text(yaml.safe_dump({**source.description, "nc": 10}))
    return str(path)


def stock_data_file(folder: Path, cache: Path) -> str:
    """Write builtin://digits for stock Ultralytics, once per cache; return the path of its data file."""
    from yolojob_trainer.data import builtin_digits

    dataset = cache / "stock-digits"
    if not dataset.exists():
        builtin_digits.write(dataset)
    document = yaml.safe_load((dataset / "data.yaml").read_text())
    path = folder / "stock-data.yaml"
    path.write_text(yaml.safe_dump({**document, "path": str(dataset)}))
    return str(path)


def train(folder: Path, cache: Path, network: str, train: dict[str, Any], **spec: Any) -> dict[str, Any]:
    """Run a job on builtin://digits; see `run_job`."""
    spec = {"model": NETWORKS[network], "dataset": {"uri": "builtin://digits"}, "train": train, **spec}
    return run_job(folder, cache, spec, IMAGES)


def run_job(folder: Path, cache: Path, spec: dict[str, Any], images_per_epoch: int) -> dict[str, Any]:
    """Run a job as `yolojob run` does.

    Returns:
        img/s of the training steps and of whole epochs, both without the first epoch, metrics, and seconds of the
        parts.
    """
    document = {
        "apiVersion": "yolojob.dev/v1alpha1",
        "kind": "YoloTrainingJob",
        "metadata": {"name": "bench"},
        "spec": spec,
    }
    local = LocalRun(parse(document), Places(runs=folder, volumes=folder, cache=cache))
    local.start()
    code = local.wait(1200)
    report = local.report(code or 0)
    assert code == 0, local.log.read_text()[-3000:]
    step_seconds, other_seconds = 0.0, 0.0
    for path in (local.output / "trace" / "rank-0").glob("*.jsonl"):
        for line in map(json.loads, path.read_text().splitlines()):
            if line["epoch"] > 0:
                seconds = sum(line["seconds"].values())
                if "images" in line:
                    step_seconds += seconds
                else:
                    other_seconds += seconds
    images = images_per_epoch * (spec["train"]["epochs"] - 1)
    return {
        "img/s": images / step_seconds,
        "img/s with validation": images / (step_seconds + other_seconds),
        "metrics": report.result.metrics if report.result else None,
        "mAP50-95": report.result.map if report.result else None,
        "startup": report.timing.startup_seconds,
        "training": report.timing.training_seconds,
    }


def in_turns(rounds: int, runs: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Measurements of each, in alternation, so that other load on the machine disturbs all of them equally."""
    figures: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            figures[name].append(run())
    return figures


def ratio(figures: dict[str, list[float]], a: str, b: str) -> float:
    """Median over the rounds of a's measurement divided by b's."""
    return statistics.median(x / y for x, y in zip(figures[a], figures[b], strict=True))
