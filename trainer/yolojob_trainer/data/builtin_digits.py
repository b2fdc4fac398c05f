"""`builtin://digits` and its variants for other tasks: composes scenes from real handwritten digits.

scikit-learn ships 1,797 digits of 8 × 8 pixels (a part of the UCI "Optical Recognition of Handwritten Digits" dataset).
Each scene is a noisy background with up to six of them, enlarged and placed without overlap. No digit is in both
splits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

SIZE = 128
"""Side of a scene in pixels."""
SCENES = {"train": 400, "val": 100}
GLYPHS = {"train": range(1437), "val": range(1437, 1797)}
DATASET_VERSION = 1
"""Part of the cache's key; must be increased with every change to the scenes."""
INK = 0.15
"""Brightness, from 0 to 1, above which a pixel belongs to a stroke."""
MAX_TURN = 60.0
"""Degrees by which a digit of the variant for oriented boxes is turned at most, in either direction."""
KEYPOINTS = ("top", "bottom", "left", "right")
"""Ends of the strokes in these directions: the key points of a digit."""
FLIPPED_KEYPOINTS = (0, 1, 3, 2)
"""Which key point each becomes in a mirrored image."""

DIGITS = tuple("0123456789")
WALL_METRES, FOCUS_METRES = 6.0, 9.0
"""Depth of the background, and that of a digit which is not enlarged: a digit twice as large is twice as near."""
DEPTH_SCALE = 1000
"""Values of a map of depth for each metre."""

Points = NDArray[np.float64]
"""(number, 2): x and y in pixels."""


@dataclass(frozen=True, kw_only=True)
class Digit:
    """A digit in a scene."""

    label: int
    zoom: int
    """Factor by which the digit is enlarged."""
    x: int
    y: int
    """Left upper corner of its box in pixels."""
    strokes: NDArray[np.bool_]
    """(height, width) of the box: which pixels belong to the digit."""
    corners: Points
    """Corners of the digit's frame, which is turned with it."""

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Centre and size of the box in pixels."""
        height, width = self.strokes.shape
        return self.x + width / 2, self.y + height / 2, width, height


Row = Callable[[Digit], str]
"""Returns the row of a digit in a label file."""


def scene(
    rng: np.random.Generator,
    glyphs: NDArray[np.float64],
    classes: NDArray[np.int64],
    max_digits: int,
    max_turn: float = 0.0,
) -> tuple[NDArray[np.uint8], list[Digit]]:
    """Compose a scene of up to `max_digits` digits.

    Args:
        rng: draws everything.
        glyphs: (number, 8, 8), from 0 to 16.
        classes: of the glyphs.
        max_digits: 0 or more.
        max_turn: degrees by which a digit is turned at most, in either direction.

    Returns:
        The image (SIZE, SIZE) uint8, and its digits.
    """
    image = rng.integers(0, 60, (SIZE, SIZE), dtype=np.uint8)
    taken: list[tuple[int, int, int, int]] = []
    digits = []
    for _ in range(max_digits):
        number, zoom = int(rng.integers(len(glyphs))), int(rng.integers(3, 6))
        glyph = _cropped(np.kron(glyphs[number] / 16.0, np.ones((zoom, zoom))))
        corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * glyph.shape[::-1]
        if max_turn:
            glyph, corners = _turned(glyph, float(rng.uniform(-max_turn, max_turn)))
        h, w = glyph.shape
        y, x = int(rng.integers(SIZE - h)), int(rng.integers(SIZE - w))
        if any(x < right and left < x + w and y < bottom and top < y + h for left, top, right, bottom in taken):
            continue
        taken.append((x, y, x + w, y + h))
        spot = image[y : y + h, x : x + w]
        spot[:] = np.maximum(spot, (glyph * 255).astype(np.uint8))
        digits.append(
            Digit(
                label=int(classes[number]),
                zoom=zoom,
                x=x,
                y=y,
                strokes=glyph > INK,
                corners=corners + np.array([x, y]),
            )
        )
    return image, digits


def _cropped(glyph: NDArray[np.float64]) -> NDArray[np.float64]:
    rows, columns = np.nonzero(glyph > INK)
    return glyph[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def _turned(glyph: NDArray[np.float64], degrees: float) -> tuple[NDArray[np.float64], Points]:
    """Return a glyph that is turned about its centre, and the corners of its frame, both in a box of their own."""
    height, width = glyph.shape
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
    frame = np.array([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1]]) @ matrix.T
    matrix[:, 2] -= frame.min(axis=0)
    corners = frame - frame.min(axis=0)
    size = np.ceil(corners.max(axis=0)).astype(int)
    return cv2.warpAffine(glyph, matrix, (int(size[0]), int(size[1]))), corners


# --- rows of labels: relative to the size of the image -------------------------------------------------------------


def _text(label: int, numbers: NDArray[np.float64]) -> str:
    return f"{label} " + " ".join(f"{v:.6f}" for v in numbers)


def _box_row(digit: Digit) -> str:
    return _text(digit.label, np.array(digit.box) / SIZE)


def _polygon_row(digit: Digit) -> str:
    """Return the outline of the digit: of its largest part, for a few digits have gaps."""
    padded = cv2.copyMakeBorder(digit.strokes.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=[0])
    contours, _ = cv2.findContours(padded, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    outline = max(contours, key=cv2.contourArea).reshape(-1, 2) - 1.0
    # Contours go through the centres of pixels; the box ends at their edges.
    height, width = digit.strokes.shape
    scale = [width / max(width - 1, 1), height / max(height - 1, 1)]
    outline = outline * np.array(scale) + np.array([digit.x, digit.y])
    return _text(digit.label, outline.reshape(-1) / SIZE)


def keypoints(digit: Digit) -> Points:
    """Return the ends of the strokes in the directions of KEYPOINTS, in pixels."""
    rows, columns = np.nonzero(digit.strokes)
    ends = [rows.argmin(), rows.argmax(), columns.argmin(), columns.argmax()]
    return np.array([[columns[end] + 0.5 + digit.x, rows[end] + 0.5 + digit.y] for end in ends])


def _keypoint_row(digit: Digit) -> str:
    visible = np.full((len(KEYPOINTS), 1), 2.0)
    points = np.hstack([keypoints(digit) / SIZE, visible])
    return _text(digit.label, np.concatenate([np.array(digit.box) / SIZE, points.reshape(-1)]))


def _corner_row(digit: Digit) -> str:
    return _text(digit.label, np.clip(digit.corners / SIZE, 0, 1).reshape(-1))


# --- datasets -------------------------------------------------------------------------------------------------------


def scenes(split: str, max_turn: float = 0.0) -> Iterator[tuple[str, NDArray[np.uint8], list[Digit]]]:
    """Yield (name, image, digits) of each scene of a split; always the same.

    Args:
        split: train or val.
        max_turn: of `scene`.
    """
    glyphs, classes = _glyphs()
    rng = np.random.default_rng([DATASET_VERSION, split == "val"])
    pool = slice(GLYPHS[split].start, GLYPHS[split].stop)
    for i in range(SCENES[split]):
        # Every twentieth scene may be empty: a detector must also learn from images without objects.
        max_digits = int(rng.integers(0 if i % 20 == 0 else 1, 7))
        yield (f"{i:05d}", *scene(rng, glyphs[pool], classes[pool], max_digits, max_turn))


def write(folder: Path, row: Row = _box_row, max_turn: float = 0.0, settings: str = "") -> None:
    """Write a dataset of images with rows of labels, and its data.yaml, always with the same bytes.

    Args:
        folder: of the dataset.
        row: the row of a digit in the label file.
        max_turn: of `scene`.
        settings: lines for the data file.
    """
    for split in SCENES:
        images, labels = _folders(folder, split, "labels")
        for name, image, digits in scenes(split, max_turn):
            cv2.imwrite(str(images / f"{name}.png"), image)
            (labels / f"{name}.txt").write_text("\n".join(row(digit) for digit in digits))
    _write_config(folder, DIGITS, settings)


def _write_maps(folder: Path, kind: str, ground: int, value: Callable[[Digit], int], dtype: type) -> None:
    """Write a dataset of images with an image of labels for each.

    Args:
        folder: of the dataset.
        kind: name of the folder with the labels.
        ground: label of pixels without a digit.
        value: label of a digit's strokes.
        dtype: of the labels.
    """
    for split in SCENES:
        images, labels = _folders(folder, split, kind)
        for name, image, digits in scenes(split):
            cv2.imwrite(str(images / f"{name}.png"), image)
            pixels: NDArray[Any] = np.full(image.shape, ground, dtype)
            for digit in digits:
                height, width = digit.strokes.shape
                pixels[digit.y : digit.y + height, digit.x : digit.x + width][digit.strokes] = value(digit)
            cv2.imwrite(str(labels / f"{name}.png"), pixels)


def _folders(folder: Path, split: str, kind: str) -> list[Path]:
    """Return the folders of a split's images and labels, which exist then."""
    folders = [folder / name / split for name in ("images", kind)]
    for path in folders:
        path.mkdir(parents=True, exist_ok=True)
    return folders


def _write_config(folder: Path, names: Sequence[str], settings: str = "") -> None:
    listed = "\n".join(f"  {i}: '{name}'" for i, name in enumerate(names))
    (folder / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames:\n{listed}\n{settings}")


def _glyphs() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the digits (number, 8, 8), from 0 to 16, and their classes."""
    from sklearn.datasets import load_digits  # slow to import, and needed once per node

    glyphs, classes = load_digits(return_X_y=True)
    return glyphs.reshape(-1, 8, 8), classes


def _write_polygons(folder: Path) -> None:
    write(folder, _polygon_row)


def _write_keypoints(folder: Path) -> None:
    shape = f"kpt_shape: [{len(KEYPOINTS)}, 3]\nflip_idx: {list(FLIPPED_KEYPOINTS)}\n"
    names = "".join(f"  {digit}: [{', '.join(KEYPOINTS)}]\n" for digit in range(10))
    write(folder, _keypoint_row, settings=f"{shape}kpt_names:\n{names}")


def _write_corners(folder: Path) -> None:
    write(folder, _corner_row, max_turn=MAX_TURN)


def _write_classes(folder: Path) -> None:
    """Write single digits in a folder for each class."""
    glyphs, classes = _glyphs()
    for split, numbers in GLYPHS.items():
        rng = np.random.default_rng([DATASET_VERSION, split == "val"])
        for i in numbers:
            glyph = np.kron(glyphs[i] / 16.0, np.ones((4, 4)))
            image = np.maximum(rng.integers(0, 60, glyph.shape, dtype=np.uint8), (glyph * 255).astype(np.uint8))
            target = folder / split / str(classes[i])
            target.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(target / f"{i:05d}.png"), image)


def _write_masks(folder: Path) -> None:
    _write_maps(folder, "masks", len(DIGITS), lambda digit: digit.label, np.uint8)
    _write_config(folder, [*DIGITS, "background"], "masks_dir: masks\n")


def _write_depths(folder: Path) -> None:
    wall = round(WALL_METRES * DEPTH_SCALE)
    _write_maps(folder, "depth", wall, lambda digit: round(FOCUS_METRES / digit.zoom * DEPTH_SCALE), np.uint16)
    _write_config(folder, ["depth"], f"depth_scale: {DEPTH_SCALE}\nmax_depth: {WALL_METRES * 2}\n")


WRITERS: dict[str, Callable[[Path], None]] = {
    "digits": write,
    "digits-seg": _write_polygons,
    "digits-pose": _write_keypoints,
    "digits-obb": _write_corners,
    "digits-cls": _write_classes,
    "digits-sem": _write_masks,
    "digits-depth": _write_depths,
}
"""Functions that write the built-in datasets, by their names."""
