"""The examples of all tasks against stock Ultralytics: same version, network, data, settings and seeds."""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.harness import Report, model_file, run_job, script
from yolojob_trainer.data import builtin_digits

from yolojob.api.task import main_metric, metrics_by_name

SEEDS = max(int(os.environ.get("YOLOJOB_BENCH_SEEDS", "3")), 2)
MAX_DIFFERENCE = 0.05
"""Of the main metric, however much the seeds differ."""
EXAMPLES = Path(__file__).parents[2] / "manifests" / "examples"
TASKS = ("segment", "pose", "obb", "classify", "semantic", "depth")


def stock_options(spec: dict[str, Any], task: str, folder: Path) -> dict[str, Any]:
    """Writes the model and the dataset of an example for Ultralytics; returns the options of `support.stock`."""
    name = spec["dataset"]["uri"].partition("://")[2]
    data = folder / name
    if not data.exists():
        data.mkdir(parents=True)
        builtin_digits.WRITERS[name](data)
    train_images = data / "train" if task == "classify" else data / "images" / "train"
    return {
        "model": model_file(spec["model"], folder),
        "task": task,
        "data": str(data if task == "classify" else data / "data.yaml"),
        "images": sum(path.is_file() for path in train_images.rglob("*")),
        "folder": str(folder),
    }


@pytest.mark.timeout(3 * 3600)
@pytest.mark.parametrize("task", TASKS)
def test_task_is_as_accurate_as_in_stock_ultralytics(task: str, tmp_path: Path, cache: Path, report: Report) -> None:
    """The mean difference over the seeds is less than two standard errors, and less than MAX_DIFFERENCE."""
    spec = next(yaml.safe_load_all((EXAMPLES / f"digits-{task}.yaml").read_text()))["spec"]
    del spec["storage"]
    options = stock_options(spec, task, tmp_path)
    values: dict[str, list[float]] = {"stock": [], "ours": []}
    speed: list[float] = []
    metric = None
    for seed in range(SEEDS):
        settings = {**spec["train"], "seed": seed}
        stock = script("stock.py", {**options, "train": settings})
        ours = run_job(tmp_path / f"ours{seed}", cache, {**spec, "train": settings}, options["images"])
        metric = main_metric(ours["metrics"])
        assert metric
        values["stock"].append(metrics_by_name(stock["metrics"])[metric])
        values["ours"].append(ours["metrics"][metric])
        speed.append(ours["img/s"] / stock["img/s"])
        print(json.dumps({"task": task, "seed": seed, "speed": speed[-1], **{k: v[-1] for k, v in values.items()}}))
    means = {key: statistics.mean(numbers) for key, numbers in values.items()}
    deviations = {f"{key} deviation": statistics.stdev(numbers) for key, numbers in values.items()}
    report.add(str(metric), task=task, **means, **deviations, speed=statistics.median(speed), values=json.dumps(values))
    differences = [a - b for a, b in zip(values["ours"], values["stock"], strict=True)]
    error = statistics.stdev(differences) / SEEDS**0.5
    assert statistics.mean(differences) > -min(2 * error, MAX_DIFFERENCE), (task, means, error)
