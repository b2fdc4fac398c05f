"""`builtin://digits`: composes detection scenes from real handwritten digits.

scikit-learn ships 1,797 digits of 8 × 8 pixels (a part of the UCI "Optical Recognition of Handwritten Digits" dataset).
Each scene is a noisy background with up to six of them, enlarged and placed without overlap. No digit is in both
splits.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

SIZE = 128
"""Side of a scene in pixels."""
SCENES = {"train": 400, "val": 100}
GLYPHS = {"train": range(1437), "val": range(1437, 1797)}
DATASET_VERSION = 1
"""Part of the cache's key; must be increased with every change to the scenes."""


def scene(
    rng: np.random.Generator, glyphs: NDArray[np.float64], classes: NDArray[np.int64], max_digits: int
) -> tuple[NDArray[np.uint8], list[str]]:
    """Compose a scene of up to `max_digits` digits.

    Returns:
        The image (SIZE, SIZE) uint8, and its labels: lines of "class x y w h", relative to the image's size.
    """
    image = rng.integers(0, 60, (SIZE, SIZE), dtype=np.uint8)
    taken: list[tuple[int, int, int, int]] = []
    labels = []
    for _ in range(max_digits):
        number, zoom = int(rng.integers(len(glyphs))), int(rng.integers(3, 6))
        glyph = np.kron(glyphs[number] / 16.0, np.ones((zoom, zoom)))
        rows, columns = np.nonzero(glyph > 0.15)
        glyph = glyph[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        h, w = glyph.shape
        y, x = int(rng.integers(SIZE - h)), int(rng.integers(SIZE - w))
        if any(x < right and left < x + w and y < bottom and top < y + h for left, top, right, bottom in taken):
            continue
        taken.append((x, y, x + w, y + h))
        spot = image[y : y + h, x : x + w]
        spot[:] = np.maximum(spot, (glyph * 255).astype(np.uint8))
        box = ((x + w / 2) / SIZE, (y + h / 2) / SIZE, w / SIZE, h / SIZE)
        labels.append(f"{classes[number]} " + " ".join(f"{v:.6f}" for v in box))
    return image, labels


def write(folder: Path) -> None:
    """Write the dataset: images, labels and data.yaml, always with the same bytes."""
    from sklearn.datasets import load_digits  # slow to import, and needed once per node

    glyphs, classes = load_digits(return_X_y=True)
    glyphs = glyphs.reshape(-1, 8, 8)
    for split, count in SCENES.items():
        rng = np.random.default_rng([DATASET_VERSION, split == "val"])
        pool = slice(GLYPHS[split].start, GLYPHS[split].stop)
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            # Every twentieth scene may be empty: a detector must also learn from images without objects.
            max_digits = int(rng.integers(0 if i % 20 == 0 else 1, 7))
            image, labels = scene(rng, glyphs[pool], classes[pool], max_digits)
            cv2.imwrite(str(folder / "images" / split / f"{i:05d}.png"), image)
            (folder / "labels" / split / f"{i:05d}.txt").write_text("\n".join(labels))
    names = "\n".join(f"  {digit}: '{digit}'" for digit in range(10))
    (folder / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames:\n{names}\n")
