"""The batched renderer against OpenCV: pixels of a thousand recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.recipes import IMAGES, IMGSZ, SETTINGS, dataset, seed, write_images
from ultralytics.cfg import get_cfg
from yolojob_trainer.data import device_images
from yolojob_trainer.data.image_cache import Image as Pixels
from yolojob_trainer.data.mosaic_window import MosaicWindow
from yolojob_trainer.data.recipe import Recipe, Tile
from yolojob_trainer.data.render import Renderer
from yolojob_trainer.data.render_batch import ImageMemory, RecipeBatch, render_batch
from yolojob_trainer.data.sample_order import SampleOrder

pytestmark = pytest.mark.torch
CPU = torch.device("cpu")
RECIPES_PER_SETTING = 112
"""Together with the number of settings a thousand."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    write_images(folder)
    return folder


@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS.keys())
def test_pixels_are_those_of_opencv_up_to_rounding(folder: Path, changes: dict[str, Any]) -> None:
    built = dataset(folder, **changes)
    built.buffer = list(range(IMAGES))
    memory = device_images.load(built, CPU)
    recipes, expected = [], []
    for number in range(RECIPES_PER_SETTING):
        seed(number)
        recipes.append(built.draw(number % IMAGES)["recipe"])
        seed(number)
        expected.append(built[number % IMAGES]["img"])
    difference = (render_batch(RecipeBatch.of_samples(recipes), memory).int() - torch.stack(expected).int()).abs()
    assert (difference > 0).float().mean() <= 1e-3
    # A pixel that differs by 1 before the change of colours may be of another hue after it.
    assert (difference > 1).float().mean() <= 1e-5
    if all(recipe.gains is None for recipe in recipes):
        assert difference.max() <= 1


class OneImage:
    """One image as the source of the pixels."""

    def __init__(self, pixels: Pixels) -> None:
        self.pixels = pixels

    def paste(self, image: int, shape: tuple[int, int], x: int, y: int, out: Pixels) -> None:
        assert (image, shape) == (0, self.pixels.shape[:2])
        out[:] = self.pixels[y : y + out.shape[0], x : x + out.shape[1]]


@settings(deadline=None, max_examples=200)
@given(
    matrix=st.lists(st.floats(-3, 3), min_size=4, max_size=4),
    offset=st.lists(st.floats(-200, 200), min_size=2, max_size=2),
    flags=st.lists(st.booleans(), min_size=3, max_size=3),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_any_affine_map_of_any_image_gives_the_pixels_of_opencv(
    matrix: list[float], offset: list[float], flags: list[bool], shape: tuple[int, int]
) -> None:
    height, width = shape
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    values = np.array([[matrix[0], matrix[1], offset[0]], [matrix[2], matrix[3], offset[1]]])
    recipe = Recipe(
        tiles=(Tile(0, 0, 0, width, height, 0, 0),),
        shapes={0: (height, width)},
        canvas=(height, width),
        matrix=values.astype(np.float32).astype(np.float64),
        size=(32, 48),
        gains=None,
        flip_up=flags[0],
        flip_left=flags[1],
        rgb=flags[2],
    )
    expected = np.empty((3, 32, 48), np.uint8)
    Renderer().render(recipe, OneImage(pixels), expected)
    memory = ImageMemory(pixels=torch.from_numpy(pixels).view(-1), index=torch.tensor([[0, width]]))
    found = render_batch(RecipeBatch.of_samples([recipe]), memory)[0].numpy()
    if abs(np.linalg.det(values[:, :2])) > 1e-2:  # otherwise a pixel far away decides by the last bits
        assert np.mean(np.abs(found.astype(int) - expected) > 1) <= 1e-2


def test_batches_of_recipes_give_the_samples_of_batches_of_pixels(folder: Path) -> None:
    """Across the epoch in which mosaics end."""
    from yolojob_trainer.data.dataset import MicroBatches, TrainSamples, loader

    order = SampleOrder(samples=IMAGES, batch=4, shards=1, seed=0)
    batches = []
    for sends_recipes in (False, True):
        samples = TrainSamples(
            dataset(folder),
            seed=0,
            window=MosaicWindow(order),
            close_mosaic_at=1,
            hyp=get_cfg(overrides={"imgsz": IMGSZ, "task": "detect"}),
        )
        samples.sends_recipes = sends_recipes
        micro_batches = MicroBatches(order, rank=0, world_size=1, start=(0, 3))
        stream = loader(samples, micro_batches, workers=0, prefetch=1, pin_memory=False)
        batches.append([next(stream) for _ in range(8)])
    memory = device_images.load(dataset(folder), CPU)
    for pixels, recipes in zip(*batches, strict=True):
        rendered = render_batch(recipes.pop("recipes"), memory)
        difference = (rendered.int() - pixels.pop("img").int()).abs()
        assert (difference > 0).float().mean() <= 1e-3
        assert recipes.keys() == pixels.keys()
        for key, value in pixels.items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(recipes[key], value, rtol=0, atol=0)


def test_images_that_do_not_fit_on_the_device_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = dataset(folder)
    assert device_images.why_not(built, CPU) is None
    monkeypatch.setattr("yolojob_trainer.system.host.free_memory", lambda _: 2**10)
    reason = device_images.why_not(built, CPU)
    assert reason is not None
    assert "cache: gpu: 0 MiB of images do not fit in 50% of the device's free memory" in reason
    assert "mixup" in str(device_images.why_not(dataset(folder, mixup=0.1), CPU))
