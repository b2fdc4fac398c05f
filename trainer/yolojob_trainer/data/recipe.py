"""Draws how the pixels of a sample are made, without making them.

A recipe names the images of a sample, where they lie on the mosaic's canvas, the matrix that maps the canvas to the
sample, the colour gains and the flips. It is drawn by Ultralytics' own transforms, with their calls of the random
generators in their order; only what they do to pixels is left out. They see an image that has a shape and no memory.
Boxes, segments and key points are transformed as always. `render` makes the pixels.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from ultralytics.data.augment import (
    Albumentations,
    Compose,
    CopyPaste,
    CutMix,
    Format,
    MixUp,
    Mosaic,
    RandomFlip,
    RandomHSV,
    RandomPerspective,
)

CHANNELS = 3
GRAY = 114
"""Colour of what no image covers, in all channels: upstream's."""
Shape = tuple[int, int]
"""(height, width)."""


class Tile(NamedTuple):
    """A part of an image on the canvas."""

    image: int
    """Number in the dataset."""
    left: int
    top: int
    right: int
    bottom: int
    """Pixels of the canvas that it covers."""
    x: int
    y: int
    """Pixel of the image that lies at (left, top)."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the pixels of one sample are made."""

    tiles: tuple[Tile, ...]
    shapes: dict[int, Shape]
    """Shape of each image in memory."""
    canvas: Shape
    matrix: NDArray[np.float64]
    """(2, 3): maps (x, y, 1) of the canvas to (x, y) of the sample."""
    size: Shape
    """Of the sample."""
    gains: NDArray[np.float64] | None
    """(3,): of hue, saturation and value; None leaves the colours as they are."""
    flip_up: bool
    flip_left: bool
    """The sample is flipped vertically, and then horizontally."""
    rgb: bool
    """Whether the channels of the sample are red, green and blue; otherwise they are in the images' order."""


def loaded_shape(original: Shape, imgsz: int) -> Shape:
    """Return the shape of an image in memory, of which the file has this shape: `BaseDataset.load_image`."""
    ratio = imgsz / max(original)
    if ratio == 1:
        return original
    height, width = (min(math.ceil(side * ratio), imgsz) for side in original)
    return height, width


def without_pixels(shape: Shape) -> Any:
    """Return an image of this shape whose pixels take no memory."""
    return np.broadcast_to(np.uint8(0), (*shape, CHANNELS))


def recorder(transforms: Compose) -> Compose | str:
    """Return transforms that draw the same samples as these, with a recipe for the pixels.

    Args:
        transforms: of a training dataset.

    Returns:
        The transforms, or why they cannot be described by a recipe.
    """
    parts: list[Any] = []
    for transform in flatten(transforms):
        if reason := _why_not_recorded(transform):
            return reason
        recording = RECORDERS.get(type(transform))
        if recording is None:
            parts.append(transform)
        else:
            part = recording.__new__(recording)
            vars(part).update(vars(transform))
            parts.append(part)
    return Compose(parts)


def flatten(transform: Any) -> Iterator[Any]:
    """Yield a transform, or those that it is composed of, in order."""
    if isinstance(transform, Compose):
        for child in transform.transforms:
            yield from flatten(child)
    else:
        yield transform


def _why_not_recorded(transform: Any) -> str | None:
    kind, probability = type(transform), getattr(transform, "p", 0.0)
    if kind in (MixUp, CutMix, CopyPaste) and probability:
        return f"spec.train.{_SETTINGS[kind]}: {probability:g} mixes pixels of two samples"
    if kind is Albumentations and transform.transform is not None:
        return "the package albumentations is installed, and changes pixels"
    if kind is RandomPerspective and transform.perspective:
        return f"spec.train.perspective: {transform.perspective:g} is not an affine map"
    if kind is Mosaic and transform.n != 4:
        return f"a mosaic of {transform.n} images"
    if kind not in (*RECORDERS, MixUp, CutMix, CopyPaste, Albumentations):
        return f"{kind.__name__} is not known"
    return None


class _RecordingMosaic(Mosaic):  # type: ignore[misc]
    def apply_image(self, labels: dict[str, Any], params: dict[str, Any] | None = None) -> dict[str, Any]:
        assert params is not None
        layout = params["layout"]
        labels["tiles"] = tuple(
            Tile(part["labels_patch"]["number"], *(part[k] for k in ("x1a", "y1a", "x2a", "y2a", "x1b", "y1b")))
            for part in layout
        )
        labels["shapes"] = {part["labels_patch"]["number"]: part["img_shape"] for part in layout}
        labels["img"] = without_pixels((2 * self.imgsz, 2 * self.imgsz))
        return labels


class _RecordingPerspective(RandomPerspective):  # type: ignore[misc]
    def apply_image(self, labels: dict[str, Any], params: dict[str, Any] | None = None) -> dict[str, Any]:
        assert params is not None
        width, height = params["size"]
        labels["canvas"] = labels["img"].shape[:2]
        labels["matrix"] = np.asarray(params["M"][:2], np.float64)
        labels["img"] = without_pixels((height, width))
        labels["resized_shape"] = (height, width)
        return labels


class _RecordingHSV(RandomHSV):  # type: ignore[misc]
    def apply_image(self, labels: dict[str, Any], _: dict[str, Any] | None = None) -> dict[str, Any]:
        if self.hgain or self.sgain or self.vgain:
            labels["gains"] = np.random.uniform(-1, 1, 3) * [self.hgain, self.sgain, self.vgain]
        return labels


class _RecordingFlip(RandomFlip):  # type: ignore[misc]
    def apply_image(self, labels: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        if params["flip"]:
            labels["flips"] = {*labels.get("flips", ()), params["direction"]}
        return labels


class _RecordingFormat(Format):  # type: ignore[misc]
    def apply_image(self, labels: dict[str, Any], params: dict[str, Any] | None = None) -> dict[str, Any]:
        labels = super().apply_image(labels, params)
        number: int = labels.pop("number")
        canvas: Shape = labels.pop("canvas")
        flips = labels.pop("flips", set())
        alone = Tile(number, 0, 0, canvas[1], canvas[0], 0, 0)
        labels["recipe"] = Recipe(
            tiles=labels.pop("tiles", (alone,)),
            shapes=labels.pop("shapes", {number: canvas}),
            canvas=canvas,
            matrix=labels.pop("matrix"),
            size=labels["resized_shape"],
            gains=labels.pop("gains", None),
            flip_up="vertical" in flips,
            flip_left="horizontal" in flips,
            rgb=labels.pop("img"),
        )
        return labels

    def _format_img(self, _: Any) -> Any:
        """Return whether the channels are swapped; drawn as upstream does."""
        return random.uniform(0, 1) > self.bgr  # noqa: S311 - upstream's generator


RECORDERS: dict[type, Any] = {
    Mosaic: _RecordingMosaic,
    RandomPerspective: _RecordingPerspective,
    RandomHSV: _RecordingHSV,
    RandomFlip: _RecordingFlip,
    Format: _RecordingFormat,
}
_SETTINGS = {MixUp: "mixup", CutMix: "cutmix", CopyPaste: "copy_paste"}
