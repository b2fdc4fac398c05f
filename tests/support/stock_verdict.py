"""What Ultralytics on its own says about datasets: a process without this project's patches.

Reads folders from the arguments, and prints a JSON object with the verdict on each. Ultralytics may change the folders.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ultralytics.cfg import get_cfg
from ultralytics.data import build_yolo_dataset
from ultralytics.data.utils import check_det_dataset


def verdict(folder: Path) -> str:
    try:
        data = check_det_dataset(str(folder / "data.yaml"), autodownload=False)
        args = get_cfg(overrides={"imgsz": 64, "task": "detect", "mosaic": 0.0})
        dataset = build_yolo_dataset(args, data["train"], 4, data, mode="train", stride=32)
        for number in range(len(dataset)):
            dataset[number]
    except SystemExit as error:
        return f"exits: {error}"
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the verdict
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    total = len(dataset.get_img_files(data["train"]))
    return f"{len(dataset)} of {total} images"


if __name__ == "__main__":
    print(json.dumps({folder: verdict(Path(folder)) for folder in sys.argv[1:]}))
