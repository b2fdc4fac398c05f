"""A small dataset whose samples are drawn as recipes, and settings of augmentation."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from ultralytics.cfg import get_cfg
from yolojob_trainer.data.dataset import NodeDataset

IMAGES, IMGSZ = 24, 64
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "no mosaic": {"mosaic": 0.0},
    "sometimes a mosaic": {"mosaic": 0.5},
    "every affine map": {"degrees": 40.0, "shear": 15.0, "translate": 0.4, "scale": 0.9},
    "all flips": {"flipud": 0.5, "fliplr": 0.5, "bgr": 0.5},
    "no colours": {"hsv_h": 0.0, "hsv_s": 0.0, "hsv_v": 0.0},
    "strong colours": {"hsv_h": 0.5, "hsv_s": 1.0, "hsv_v": 1.0},
    "enlarged": {"scale": [2.0, 4.0]},
    "small and far": {"scale": [0.1, 0.3], "translate": 1.0},
}


def write_images(folder: Path) -> None:
    """Writes images of many shapes with boxes."""
    generator = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for i in range(IMAGES):
        height, width = generator.integers(20, 200, 2).tolist()
        coarse = generator.integers(0, 256, (5, 5, 3)).astype(np.uint8)
        fine = generator.integers(0, 30, (height, width, 3)).astype(np.uint8)
        pixels = cv2.add(cv2.resize(coarse, (width, height)), fine)
        cv2.imwrite(str(folder / "images" / f"{i}.png"), pixels)
        boxes = np.column_stack([generator.integers(0, 3, 5), generator.uniform(0.3, 0.5, (5, 4))])
        np.savetxt(folder / "labels" / f"{i}.txt", boxes, fmt=["%d"] + ["%.5f"] * 4)


def dataset(folder: Path, **settings: Any) -> NodeDataset:
    args = get_cfg(overrides={"imgsz": IMGSZ, "task": "detect", **settings})
    return NodeDataset(
        label_folder=folder / "caches",
        boundary=None,
        img_path=str(folder / "images"),
        imgsz=IMGSZ,
        batch_size=4,
        augment=True,
        hyp=args,
        stride=32,
        task="detect",
        data={"names": {0: "a", 1: "b", 2: "c"}, "nc": 3, "channels": 3},
    )


def seed(number: int) -> None:
    random.seed(number)
    np.random.seed(number)
