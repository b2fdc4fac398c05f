"""Ultralytics' datasets with a label for each pixel: masks of classes, polygons as masks, and maps of depth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from ultralytics.data.dataset import DepthDataset, PolygonSemanticDataset, SemanticDataset, YOLODataset

from yolojob_trainer.data.dataset import MAX_PIXELS, NodeDataset


class _ShortSide(YOLODataset):  # type: ignore[misc]
    """Resizes the short side of training images to imgsz, as upstream's semantic datasets do.

    Upstream decides by `augment`, which `NodeDataset` switches off for another reason.
    """

    def load_image(self, i: int, rect_mode: bool = True, resize_short: bool = False) -> Any:  # noqa: ARG002
        return super().load_image(i, rect_mode=rect_mode, resize_short=self._augments)


class _LargeImages(NodeDataset):
    """Does not keep recent images: they are larger than `RecentImages` expects, or are not mixed."""

    def keep_recent(self, count: int, memory: float) -> None:
        """Do nothing."""


class _PixelLabels(_LargeImages):
    """What the datasets of masks and of depths have in common: no boxes, and a file of labels for each image."""

    caches_labels = False  # the label cache has no place for the names of other files

    def warnings(self) -> list[str]:
        return []  # images without labels are left out, and named as such


class MaskImages(_PixelLabels, SemanticDataset, _ShortSide):  # type: ignore[misc]
    """Images with a mask of class ids for each."""

    def verify_labels(self, labels: list[dict[str, Any]], cache_path: Path) -> None:
        super().verify_labels(labels, cache_path)
        self._check_links(self.mask_files)  # also those with another suffix than the expected one


class PolygonMaskImages(_LargeImages, PolygonSemanticDataset, _ShortSide):  # type: ignore[misc]
    """Images whose masks are drawn from polygons."""


class DepthImages(_PixelLabels, DepthDataset):  # type: ignore[misc]
    """Images with a map of depths for each."""

    def verify_labels(self, labels: list[dict[str, Any]], cache_path: Path) -> None:
        """Check the sizes of the maps: upstream compares only their shape with that of the image.

        Raises:
            ValueError: a map takes too much memory when it is loaded.
        """
        super().verify_labels(labels, cache_path)
        for label in labels:
            path = self.depth_files_by_image[label["im_file"]]
            if (pixels := _pixels(path)) > MAX_PIXELS:
                raise ValueError(f"{path} has {pixels} pixels, more than {MAX_PIXELS / 1e6:.0f} million")


def _pixels(path: str) -> int:
    """Return the number of pixels of a map of depths, without loading it."""
    if path.endswith(".npy"):
        return int(np.load(path, mmap_mode="r", allow_pickle=False).size)
    with Image.open(path) as image:
        return image.width * image.height


def semantic_images(*, data: dict[str, Any], **settings: Any) -> NodeDataset:
    """Return the dataset for a semantic segmentation: with masks in files, or with polygons."""
    kind = MaskImages if data.get("masks_dir") else PolygonMaskImages
    return kind(data=data, **{**settings, "pad": 0.0})


def depth_images(*, augment: bool, rect: bool, **settings: Any) -> NodeDataset:
    """Return the dataset for depths. Its validation stretches images, so that they have no rectangles."""
    return DepthImages(augment=augment, rect=rect and augment, **{**settings, "pad": 0.0})
