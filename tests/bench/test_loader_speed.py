"""Images per CPU second of the trainer's loader and of stock Ultralytics', in one process, in turns."""

from __future__ import annotations

import os
import statistics
from pathlib import Path

import pytest
from support.harness import Report, ratio, script

ROUNDS = int(os.environ.get("YOLOJOB_BENCH_ROUNDS", "5"))
NOISE = 0.05
"""Of the ratio of two measurements in turns."""


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("width", "height"), [(640, 480), (1280, 960)])
def test_loader_is_as_fast_as_stock_ultralytics(width: int, height: int, tmp_path: Path, report: Report) -> None:
    """Photographs of the size of COCO's, and of four times as many pixels, at an image size of 640."""
    options = {"folder": str(tmp_path), "images": 400, "width": width, "height": height, "imgsz": 640, "batch": 16}
    rates: dict[str, list[float]] = script("loader_rates.py", {**options, "rounds": ROUNDS})
    ratios = {
        "ours/stock": ratio(rates, "ours", "stock"),
        "cached/stock cached": ratio(rates, "ours cached", "stock cached"),
        "cached/stock": ratio(rates, "ours cached", "stock"),
        "recipes/stock": ratio(rates, "recipes", "stock"),
        "cached/ours": ratio(rates, "ours cached", "ours"),
    }
    medians = {name: statistics.median(values) for name, values in rates.items()}
    report.add("loader", size=f"{width}x{height}", **medians, **ratios)
    assert ratios["ours/stock"] >= 1 - NOISE
    assert ratios["cached/stock cached"] >= 1 - NOISE
    assert ratios["recipes/stock"] >= 6
