"""Makes the pixels of samples on a CPU with OpenCV, as Ultralytics' transforms make them.

Only the part of the mosaic's canvas is drawn that the sample shows: a third of it on average. The matrix stays that of
the whole canvas, so that all numbers are rounded as upstream's are.
"""

from __future__ import annotations

import math
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from yolojob_trainer.data.image_cache import Image
from yolojob_trainer.data.recipe import CHANNELS, GRAY, Recipe, Shape

_MARGIN = 2
"""Pixels around the visible part of the canvas: interpolation needs one, and rounding may need another."""


class ShapeError(ValueError):
    """An image does not have the shape for which the recipe was drawn."""

    def __init__(self, image: int) -> None:
        super().__init__(f"image {image} does not have the shape that the label scan has found")
        self.image = image


class Images(Protocol):
    """Where the pixels of images are."""

    def paste(self, image: int, shape: Shape, x: int, y: int, out: Image) -> None:
        """Copy a part of an image.

        Args:
            image: number of the image.
            shape: that it must have.
            x: first column.
            y: first row.
            out: (height, width, channels) of the part.

        Raises:
            ShapeError: it has another shape.
        """


class Renderer:
    """Renders samples of one size; keeps its memory between them. Not for several threads."""

    def __init__(self) -> None:
        self._canvas: Image = np.empty(0, np.uint8)

    def render(self, recipe: Recipe, images: Images, out: Image) -> None:
        """Write the pixels of a sample.

        Args:
            recipe: of the sample.
            images: those that the recipe names.
            out: (channels, height, width), contiguous.

        Raises:
            ShapeError: an image does not have the shape that the recipe says.
        """
        canvas = self._draw(recipe, images, visible_part(recipe))
        height, width = recipe.size
        image = cv2.warpAffine(canvas, recipe.matrix, (width, height), borderValue=(GRAY,) * 4)
        if recipe.gains is not None:
            image = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
            cv2.cvtColor(cv2.LUT(image, colour_table(recipe.gains)), cv2.COLOR_HSV2BGR, dst=image)
        if recipe.flip_up or recipe.flip_left:
            image = cv2.flip(image, 1 if not recipe.flip_up else -1 if recipe.flip_left else 0)
        cv2.split(image, [out[2], out[1], out[0]] if recipe.rgb else [out[0], out[1], out[2]])

    def _draw(self, recipe: Recipe, images: Images, part: tuple[int, int, int, int]) -> Image:
        """Return the canvas with this part (left, top, right, bottom) drawn; the rest has any content."""
        left, top, right, bottom = part
        size = math.prod(recipe.canvas) * CHANNELS
        if self._canvas.size < size:
            self._canvas = np.empty(size, np.uint8)
        canvas = self._canvas[:size].reshape(*recipe.canvas, CHANNELS)
        covered = 0
        parts = []
        for tile in recipe.tiles:
            x1, y1 = max(tile.left, left), max(tile.top, top)
            x2, y2 = min(tile.right, right), min(tile.bottom, bottom)
            if x1 < x2 and y1 < y2:
                parts.append((tile, x1, y1, x2, y2))
                covered += (x2 - x1) * (y2 - y1)
        if covered < (bottom - top) * (right - left):  # tiles do not overlap
            canvas[top:bottom, left:right] = GRAY
        for tile, x1, y1, x2, y2 in parts:
            x, y = tile.x + x1 - tile.left, tile.y + y1 - tile.top
            images.paste(tile.image, recipe.shapes[tile.image], x, y, canvas[y1:y2, x1:x2])
        return canvas


def visible_part(recipe: Recipe) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) of the canvas that a sample shows; at least one pixel."""
    height, width = recipe.size
    corners = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]], np.float64)
    seen = corners @ cv2.invertAffineTransform(recipe.matrix).T
    (left, top), (right, bottom) = np.floor(seen.min(0)) - _MARGIN, np.ceil(seen.max(0)) + _MARGIN
    bottom_limit, right_limit = recipe.canvas
    left, top = min(max(left, 0), right_limit - 1), min(max(top, 0), bottom_limit - 1)
    right, bottom = max(min(right, right_limit), left + 1), max(min(bottom, bottom_limit), top + 1)
    return int(left), int(top), int(right), int(bottom)


def colour_table(gains: NDArray[np.float64]) -> Image:
    """Return the (1, 256, 3) table for hue, saturation and value: `RandomHSV.apply_image`."""
    values = np.arange(256, dtype=gains.dtype)
    hue = ((values + gains[0] * 180) % 180).astype(np.uint8)
    saturation = np.clip(values * (gains[1] + 1), 0, 255).astype(np.uint8)
    value = np.clip(values * (gains[2] + 1), 0, 255).astype(np.uint8)
    saturation[0] = 0  # white stays white
    return np.stack((hue, saturation, value), -1).reshape(1, 256, CHANNELS)
