"""The comparison: stock `ultralytics.YOLO(...).train(...)` on the same data. `python stock.py JSON`, in its own
process.

Prints a line of JSON: img/s of the training steps and of whole epochs (with validation), both without the first epoch,
and the metrics at the end.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    options: dict[str, Any] = json.loads(sys.argv[1])
    from ultralytics import YOLO

    folder = Path(options["folder"])
    model = YOLO(options["model"], task=options.get("task", "detect"))
    began: list[float] = []
    trained: list[float] = []
    whole: list[float] = []
    model.add_callback("on_train_epoch_start", lambda _: began.append(time.perf_counter()))
    model.add_callback("on_train_epoch_end", lambda _: trained.append(time.perf_counter() - began[-1]))
    model.add_callback("on_fit_epoch_end", lambda _: whole.append(time.perf_counter() - began[-1]))
    model.train(
        data=options["data"],
        project=str(folder),
        name="stock",
        exist_ok=True,
        device="cpu",
        plots=False,
        verbose=False,
        **options["train"],
    )
    images = options["images"] * (len(trained) - 1)
    metrics = {name: float(value) for name, value in model.metrics.results_dict.items()} if model.metrics else {}
    print(
        json.dumps(
            {
                "img/s": images / sum(trained[1:]),
                "img/s with validation": images / sum(whole[1 : len(trained)]),
                "metrics": metrics,
                "mAP50-95": metrics.get("metrics/mAP50-95(B)"),
            }
        )
    )


if __name__ == "__main__":
    main()
