"""Makes the pixels of a batch of samples in one pass over its pixels, on any device.

The inverse of the matrix gives the place of each pixel of a sample on the mosaic's canvas. Four pixels of the images
around that place are read and interpolated, and the colours are changed. No canvas is written, and the
images are read where they lie. The arithmetic is that of OpenCV 5, `warpAffine` and `cvtColor`, up to the rounding of
float32: a test compares it with `render`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from yolojob_trainer.data.recipe import CHANNELS, GRAY, Recipe
from yolojob_trainer.data.render import colour_table

TILES = 4
PIXELS_AT_ONCE = 8 * 640**2
"""Pixels of the samples that are made at the same time: each takes about 500 bytes of intermediate tensors."""
_FAR = 1e6
"""Place outside of every canvas, in pixels."""
_HSV_SHIFT = 12
"""Bits after the point in OpenCV's tables of divisions."""
_HUES = 180
"""Values of a hue in one byte."""
_SECTORS = ((1, 3, 0), (1, 0, 2), (3, 0, 1), (0, 2, 1), (0, 1, 3), (2, 1, 0))
"""For each sixth of the hues, which of OpenCV's four values blue, green and red have."""


@dataclass(frozen=True, kw_only=True)
class RecipeBatch:
    """The recipes of a batch as arrays."""

    tiles: torch.Tensor
    """(B, TILES, 7), int32: image, left, top, right, bottom, x, y of `recipe.Tile`; a missing tile covers nothing."""
    canvas: torch.Tensor
    """(B, 2), int32: height and width."""
    inverse: torch.Tensor
    """(B, 2, 3), float32: maps (x, y, 1) of the sample to (x, y) of the canvas."""
    colours: torch.Tensor
    """(B, 256, 3), uint8: table for hue, saturation and value."""
    coloured: torch.Tensor
    """(B,), bool: whether the colours are changed."""
    flips: torch.Tensor
    """(B, 2), bool: whether the sample is flipped vertically, and horizontally."""
    rgb: torch.Tensor
    """(B,), bool: whether the channels are red, green and blue."""
    size: tuple[int, int]
    """(height, width) of the samples."""

    @classmethod
    def of_samples(cls, recipes: Sequence[Recipe]) -> RecipeBatch:
        """Combine recipes for samples of the same size."""
        tiles = np.zeros((len(recipes), TILES, 7), np.int32)
        for i, recipe in enumerate(recipes):
            tiles[i, : len(recipe.tiles)] = recipe.tiles
        plain = np.zeros((1, 256, CHANNELS), np.uint8)
        tables = [plain if r.gains is None else colour_table(r.gains) for r in recipes]
        return cls(
            tiles=torch.from_numpy(tiles),
            canvas=torch.tensor([r.canvas for r in recipes], dtype=torch.int32),
            inverse=torch.from_numpy(np.stack([_inverse(r.matrix) for r in recipes])),
            colours=torch.from_numpy(np.concatenate(tables)),
            coloured=torch.tensor([r.gains is not None for r in recipes]),
            flips=torch.tensor([(r.flip_up, r.flip_left) for r in recipes]),
            rgb=torch.tensor([r.rgb for r in recipes]),
            size=recipes[0].size,
        )

    def pin_memory(self) -> RecipeBatch:
        """Return the same in page-locked memory; torch's loader calls it."""
        return self._mapped(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device) -> RecipeBatch:
        """Return the same on a device."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def parts(self, samples: int) -> Iterator[RecipeBatch]:
        """Yield the recipes of this number of samples at a time."""
        for start in range(0, len(self.tiles), samples):
            yield self._mapped(lambda tensor, start=start: tensor[start : start + samples])  # type: ignore[misc]

    def _mapped(self, change: Callable[[torch.Tensor], torch.Tensor]) -> RecipeBatch:
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "size"}
        return RecipeBatch(**{name: change(tensor) for name, tensor in tensors.items()}, size=self.size)


@dataclass(frozen=True, kw_only=True)
class ImageMemory:
    """Decoded images, one after the other."""

    pixels: torch.Tensor
    """uint8: all rows of all images, three channels for each pixel."""
    index: torch.Tensor
    """(N, 2), int64: first element and width of each image."""


def render_batch(batch: RecipeBatch, images: ImageMemory) -> torch.Tensor:
    """Return the pixels of a batch, a few samples at a time, because the intermediate tensors are large.

    Args:
        batch: the recipes.
        images: those that the recipes name, on the same device.

    Returns:
        (B, channels, height, width), uint8, with the channels last in memory.
    """
    at_once = max(PIXELS_AT_ONCE // math.prod(batch.size), 1)
    return torch.cat([_render_part(part, images) for part in batch.parts(at_once)])


def _render_part(batch: RecipeBatch, images: ImageMemory) -> torch.Tensor:
    """Return the pixels of a batch at once, as `render_batch` does."""
    height, width = batch.size
    device = images.pixels.device
    flip_up, flip_left = (flip.view(-1, 1, 1) for flip in batch.flips.unbind(1))
    row = torch.arange(height, device=device, dtype=torch.float32).view(1, -1, 1)
    column = torch.arange(width, device=device, dtype=torch.float32).view(1, 1, -1)
    y = torch.where(flip_up, height - 1 - row, row)
    x = torch.where(flip_left, width - 1 - column, column)
    m = batch.inverse.view(-1, 6, 1, 1)
    across = torch.addcmul(torch.addcmul(m[:, 2], y, m[:, 1]), x, m[:, 0])
    down = torch.addcmul(torch.addcmul(m[:, 5], y, m[:, 4]), x, m[:, 3])
    # A matrix without an inverse maps to places that are no numbers.
    across, down = (place.nan_to_num(-_FAR).clamp(-_FAR, _FAR) for place in (across, down))
    left, top = torch.floor(across), torch.floor(down)
    right_weight, bottom_weight = (across - left).unsqueeze(-1), (down - top).unsqueeze(-1)
    left_int, top_int = left.long(), top.long()
    upper, lower = (
        _between(
            _read(batch, images, left_int, top_int + below),
            _read(batch, images, left_int + 1, top_int + below),
            right_weight,
        )
        for below in (0, 1)
    )
    pixels = torch.round(_between(upper, lower, bottom_weight)).to(torch.int32)
    pixels = torch.where(batch.coloured.view(-1, 1, 1, 1), _recolour(pixels, batch.colours), pixels)
    pixels = torch.where(batch.rgb.view(-1, 1, 1, 1), pixels.flip(-1), pixels)
    return pixels.to(torch.uint8).permute(0, 3, 1, 2)


def _between(first: torch.Tensor, second: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Interpolate; `torch.lerp` rounds in another way."""
    return first + weight * (second - first)


def _read(batch: RecipeBatch, images: ImageMemory, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the colours of these pixels of the canvas, (B, height, width, channels), float32."""
    address = torch.full_like(x, -1)
    for tile in batch.tiles.unbind(1):
        image, left, top, right, bottom, first_x, first_y = (value.view(-1, 1, 1).long() for value in tile.unbind(1))
        start, width = images.index[image].unbind(-1)
        inside = (x >= left) & (x < right) & (y >= top) & (y < bottom)
        here = start + ((y - top + first_y) * width + (x - left + first_x)) * CHANNELS
        address = torch.where(inside, here, address)
    covered = (address >= 0).unsqueeze(-1)
    channels = torch.arange(CHANNELS, device=address.device)
    colours = images.pixels[address.clamp_min(0).unsqueeze(-1) + channels]
    return torch.where(covered, colours, GRAY).float()


def _recolour(pixels: torch.Tensor, tables: torch.Tensor) -> torch.Tensor:
    """Change hue, saturation and value by tables, as OpenCV does it for bytes.

    Args:
        pixels: (B, height, width, channels), int32: blue, green, red.
        tables: (B, 256, 3), uint8.
    """
    blue, green, red = pixels.unbind(-1)
    value, least = pixels.amax(-1), pixels.amin(-1)
    span = value - least
    saturations, hues, _ = _tables(pixels.device)
    half = 1 << (_HSV_SHIFT - 1)
    saturation = (span * saturations[value] + half) >> _HSV_SHIFT
    hue = torch.where(
        value == red, green - blue, torch.where(value == green, blue - red + 2 * span, red - green + 4 * span)
    )
    hue = (hue * hues[span] + half) >> _HSV_SHIFT
    hue = torch.where(hue < 0, hue + _HUES, hue)
    flat = tables.int().transpose(1, 2).reshape(len(tables), -1)
    changed = [
        flat.gather(1, (channel.flatten(1) + 256 * i).long()).view_as(channel).float()
        for i, channel in enumerate((hue, saturation, value))
    ]
    return _to_bgr(*changed)


def _to_bgr(hue: torch.Tensor, saturation: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return blue, green and red, int32, of bytes as float32."""
    saturation, value = saturation * (1 / 255), value * (1 / 255)
    hue = hue * (6 / _HUES)
    sector = torch.floor(hue)
    part = hue - sector
    choices = torch.stack(
        (
            value,
            value * (1 - saturation),
            value * (1 - saturation * part),
            value * (1 - saturation * (1 - part)),
        ),
        -1,
    )
    order = _tables(hue.device)[2][sector.long().clamp(0, len(_SECTORS) - 1)]
    return (choices.gather(-1, order) * 255).to(torch.int32).clamp(0, 255)


@cache
def _tables(device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return OpenCV's tables for dividing by the value, and by the span of the channels (`initHSVTabs`), and SECTORS.

    They are kept, because every copy to a GPU waits for it.
    """
    divisors = np.arange(1, 256)
    saturations = np.rint((255 << _HSV_SHIFT) / divisors)
    hues = np.rint((_HUES << _HSV_SHIFT) / (6.0 * divisors))
    both = [torch.from_numpy(np.concatenate([[0], table]).astype(np.int32)) for table in (saturations, hues)]
    return both[0].to(device), both[1].to(device), torch.tensor(_SECTORS, device=device)


def _inverse(matrix: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the inverse of an affine map, in OpenCV's order of operations."""
    (a, b, c), (d, e, f) = matrix.tolist()
    determinant = a * e - b * d
    scale = 1 / determinant if determinant else 0.0
    a, b, d, e = e * scale, -b * scale, -d * scale, a * scale
    return np.array([[a, b, -a * c - b * f], [d, e, -d * c - e * f]], np.float32)
