"""Makes the synthetic dataset: JPEGs that take as long to decode as those of COCO (640 × 480, 130 kB)."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import yaml

from gpu.scale import dataset_folder, scale
from gpu.table import figure, report

CLASSES = 80
NOISE = ((8, 90), (32, 60), (128, 28), (320, 24), (640, 10))
"""(cells in the width of the picture, strength): their sum has the spectrum of a photograph."""
VALIDATION_IMAGES = {True: 64, False: 4}
"""On a GPU, and on a CPU."""


def write_image(number: int) -> int:
    """Write an image and its labels; return the bytes of the image."""
    random = np.random.default_rng(number)
    height, width = (480, 640) if number % 3 else (640, 427)
    if not scale().gpu:
        height, width = height // 5, width // 5
    pixels = np.zeros((height, width, 3), np.float32)
    for cells, strength in NOISE:
        shape = (max(height * cells // 640, 2), max(width * cells // 640, 2), 3)
        noise = random.random(shape, dtype=np.float32) - 0.5
        pixels += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) * strength * 2
    image = (pixels + 128).clip(0, 255).astype(np.uint8)
    lines = []
    for _ in range(int(random.integers(1, 14))):
        w, h = random.uniform(0.05, 0.4, 2)
        x, y = random.uniform(w / 2, 1 - w / 2), random.uniform(h / 2, 1 - h / 2)
        kind = int(random.integers(0, CLASSES))
        corners = [(int((x + side * w / 2) * width), int((y + side * h / 2) * height)) for side in (-1, 1)]
        colour = [int(value) for value in random.integers(0, 255, 3)]
        cv2.rectangle(image, corners[0], corners[1], colour, -1 if kind % 3 == 0 else 2)
        lines.append(f"{kind} {x:.5f} {y:.5f} {w:.5f} {h:.5f}")
    path = _path("images", "train", number)
    cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, 92])
    _path("labels", "train", number).write_text("\n".join(lines))
    return path.stat().st_size


def write_dataset() -> float:
    """Write the dataset; return the bytes of a mean image."""
    size = scale()
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (dataset_folder() / kind / split).mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(size.loaders) as pool:
        sizes = list(pool.map(write_image, range(size.different_images), chunksize=8))
    for kind in ("images", "labels"):
        for i in range(size.images):
            source = _path(kind, "train", i % size.different_images)
            _link(source, _path(kind, "train", i))
            if i < VALIDATION_IMAGES[size.gpu]:
                _link(source, _path(kind, "val", i))
    document = {
        "path": str(dataset_folder()),
        "train": "images/train",
        "val": "images/val",
        "names": {i: f"class {i}" for i in range(CLASSES)},
    }
    (dataset_folder() / "data.yaml").write_text(yaml.safe_dump(document))
    return sum(sizes) / len(sizes)


def _path(kind: str, split: str, number: int) -> Path:
    return dataset_folder() / kind / split / f"{number:06d}{'.jpg' if kind == 'images' else '.txt'}"


def _link(source: Path, target: Path) -> None:
    if not target.exists():
        os.link(source, target)


if __name__ == "__main__":
    report([figure("synthetic dataset: images, kB of each", f"{scale().images}, {write_dataset() / 1000:.0f}")])
