"""Samples drawn as recipes: the same labels and pixels as Ultralytics' transforms make, for the same random numbers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.recipes import IMAGES, IMGSZ, SETTINGS, dataset, seed, write_images
from ultralytics.cfg import get_cfg
from ultralytics.data.augment import Compose
from yolojob_trainer.data import recipe
from yolojob_trainer.data.dataset import NodeDataset
from yolojob_trainer.data.mosaic_window import MosaicWindow
from yolojob_trainer.data.recipe import Recipe
from yolojob_trainer.data.sample_order import SampleOrder

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of many shapes with boxes."""
    folder = tmp_path_factory.mktemp("recipes")
    write_images(folder)
    return folder


def upstream(built: NodeDataset, **settings: Any) -> NodeDataset:
    """The same dataset with Ultralytics' transforms."""
    stock = copy.copy(built)
    stock.augment = True
    args = get_cfg(overrides={"imgsz": IMGSZ, "task": "detect", **settings})
    stock.transforms = super(NodeDataset, stock).build_transforms(args)
    stock.augment = False
    for transform in recipe.flatten(stock.transforms):
        if hasattr(transform, "buffer_enabled"):
            transform.buffer_enabled = True
    stock.not_recorded = "by the test"
    return stock


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_rendered_sample_is_that_of_upstreams_transforms(folder: Path, settings: dict[str, Any]) -> None:
    ours = dataset(folder, **settings)
    assert ours.not_recorded is None
    stock = upstream(ours, **settings)
    window = MosaicWindow(SampleOrder(samples=IMAGES, batch=4, shards=1, seed=0))
    for number in range(2 * IMAGES):
        image = number % IMAGES
        samples = []
        for built in (ours, stock):
            built.buffer = window.images(number // IMAGES, image)
            seed(number)
            samples.append(built[image])
        assert samples[0].keys() == samples[1].keys()
        for key, value in samples[1].items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(samples[0][key], value, rtol=0, atol=0)
            else:
                assert samples[0][key] == value, key


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"mixup": 0.1}, "spec.train.mixup: 0.1"),
        ({"cutmix": 0.2}, "spec.train.cutmix: 0.2"),
        ({"copy_paste": 0.3}, "spec.train.copy_paste: 0.3"),
        ({"perspective": 0.001}, "spec.train.perspective: 0.001"),
    ],
)
def test_settings_that_no_recipe_describes_use_upstreams_transforms(
    folder: Path, settings: dict[str, Any], reason: str
) -> None:
    built = dataset(folder, **settings)
    assert built.not_recorded is not None
    assert reason in built.not_recorded
    built.buffer = [1, 2]
    assert built[0]["img"].shape == (3, IMGSZ, IMGSZ)


def test_unknown_transform_is_not_recorded() -> None:
    class Blur:
        pass

    assert recipe.recorder(Compose([Blur()])) == "Blur is not known"


def test_drawing_a_recipe_decodes_no_image(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = dataset(folder)
    built.buffer = list(range(IMAGES))

    def decode(*_: Any, **__: Any) -> None:
        raise AssertionError("an image is decoded")

    monkeypatch.setattr("ultralytics.data.base.imread", decode)
    drawn: Recipe = built.draw(3)["recipe"]
    assert drawn.tiles[0].image == 3
    assert drawn.size == (IMGSZ, IMGSZ)


def test_image_whose_shape_the_label_scan_has_read_otherwise_is_corrected(folder: Path) -> None:
    """Programs differ in which EXIF orientations they apply."""
    from yolojob_trainer.data.dataset import TrainSamples

    args = get_cfg(overrides={"imgsz": IMGSZ, "task": "detect"})
    window = MosaicWindow(SampleOrder(samples=IMAGES, batch=4, shards=1, seed=0))

    def samples() -> TrainSamples:
        return TrainSamples(dataset(folder), seed=0, window=window, close_mosaic_at=100, hyp=args)

    wrong, right = samples(), samples()
    for number in range(IMAGES):
        height, width = wrong.dataset.labels.shape(number)
        wrong.dataset.labels.set_shape(number, (width, height))
    for number in range(IMAGES):
        torch.testing.assert_close(wrong[0, number]["img"], right[0, number]["img"], rtol=0, atol=0)
        torch.testing.assert_close(wrong[0, number]["bboxes"], right[0, number]["bboxes"], rtol=0, atol=0)


@pytest.mark.parametrize("settings", [{}, {"mixup": 0.5}])
def test_sample_does_not_depend_on_the_epochs_asked_for_before(folder: Path, settings: dict[str, Any]) -> None:
    """After a rollback the epochs before the one without mosaics come again."""
    from yolojob_trainer.data.dataset import TrainSamples

    window = MosaicWindow(SampleOrder(samples=IMAGES, batch=4, shards=1, seed=0))

    def samples() -> TrainSamples:
        args = get_cfg(overrides={"imgsz": IMGSZ, "task": "detect", **settings})
        return TrainSamples(dataset(folder, **settings), seed=0, window=window, close_mosaic_at=2, hyp=args)

    asked = samples()
    asked.dataset.keep_recent(8, 2**24)
    for epoch in (0, 2, 1, 3, 0):
        fresh = samples()
        for number in range(0, IMAGES, 5):
            torch.testing.assert_close(asked[epoch, number]["img"], fresh[epoch, number]["img"], rtol=0, atol=0)
