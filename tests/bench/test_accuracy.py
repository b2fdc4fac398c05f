"""The accuracy of the trainer against stock Ultralytics: same version, network, data, settings and seeds."""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path
from typing import Any

import pytest
from support.harness import IMAGES, Report, network_file, script, stock_data_file, train

SEEDS = max(int(os.environ.get("YOLOJOB_BENCH_SEEDS", "5")), 2)
MAX_DIFFERENCE = 0.03
"""Of mAP50-95, however much the seeds differ."""
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "digits example": (
        "digits",
        {
            "epochs": 20,
            "imgsz": 128,
            "nbs": 16,
            "optimizer": "AdamW",
            "lr0": 0.004,
            "warmup_epochs": 1,
            "mosaic": 0.0,
            "scale": 0.2,
            "fliplr": 0.0,
            "hsv_h": 0.0,
        },
    ),
    "default augmentation": ("small", {"epochs": 30, "imgsz": 128, "optimizer": "AdamW", "lr0": 0.004}),
}
"""A network of `support.harness.NETWORKS` and its settings, by name. The first ones are those of
manifests/examples/digits.yaml."""
AMP = {"ours": "auto", "ours fp32": False}


@pytest.mark.timeout(3 * 3600)
@pytest.mark.parametrize("name", SETTINGS)
def test_trainer_is_as_accurate_as_stock_ultralytics(name: str, tmp_path: Path, cache: Path, report: Report) -> None:
    """The mean difference over the seeds is less than two standard errors, and less than MAX_DIFFERENCE."""
    network, settings = SETTINGS[name]
    data, model = stock_data_file(tmp_path, cache), network_file(network, tmp_path)
    maps: dict[str, list[float]] = {"stock": [], **{ours: [] for ours in AMP}}
    for seed in range(SEEDS):
        seeded = {**settings, "batch": 16, "seed": seed}
        options = {"model": model, "data": data, "folder": str(tmp_path), "images": IMAGES, "train": seeded}
        maps["stock"].append(script("stock.py", options)["mAP50-95"])
        for ours, amp in AMP.items():
            maps[ours].append(train(tmp_path / f"{ours}{seed}", cache, network, {**seeded, "amp": amp})["mAP50-95"])
        print(json.dumps({"settings": name, "seed": seed, **{k: round(v[-1], 4) for k, v in maps.items()}}))
    means = {key: statistics.mean(values) for key, values in maps.items()}
    deviations = {f"{key} deviation": statistics.stdev(values) for key, values in maps.items()}
    report.add("mAP50-95", settings=name, **means, **deviations, values=json.dumps(maps))
    for ours in AMP:
        differences = [a - b for a, b in zip(maps[ours], maps["stock"], strict=True)]
        error = statistics.stdev(differences) / SEEDS**0.5
        assert statistics.mean(differences) > -min(2 * error, MAX_DIFFERENCE), (name, ours, means, error)
