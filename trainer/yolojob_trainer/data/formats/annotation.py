"""Annotations of images, independent of the format of their files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from ultralytics.data.utils import exif_size

from yolojob.api.reasons import Reason
from yolojob_trainer.data.dataset_images import IMAGE_FORMATS
from yolojob_trainer.data.untrusted import is_relative_path
from yolojob_trainer.errors import BadInput

Points = npt.NDArray[np.float64]
"""(points, 2): x and y in pixels."""
Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels."""

TURNED = "image(s) are turned by EXIF data, but annotated as they are stored: they are left out"
ALL = "all"
"""Name of the images of a dataset that states no splits."""
TRAIN, VAL, TEST = "train", "val", "test"
_SPLIT_WORDS = {"train": TRAIN, "training": TRAIN, "val": VAL, "valid": VAL, "validation": VAL, "test": TEST}


@dataclass(frozen=True, kw_only=True, slots=True)
class Annotation:
    """One object of an image."""

    name: str
    """Of its class."""
    box: Box
    polygons: list[Points] = field(default_factory=list)
    """Parts of its outline."""
    keypoints: npt.NDArray[np.float64] | None = None
    """(key points, 3): x and y in pixels, and visibility: 0 unlabelled, 1 hidden, 2 visible."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnnotatedImage:
    """An image and its objects."""

    file: Path
    name: str
    """Path of the image within its split, without "..", with slashes."""
    width: int
    height: int
    annotations: list[Annotation]


@dataclass(frozen=True, kw_only=True)
class AnnotatedDataset:
    """All annotations of a dataset."""

    format: str
    """For people: COCO or Pascal VOC."""
    names: list[str]
    """Of the classes, in the order of their ids."""
    splits: dict[str, Iterable[AnnotatedImage]]
    """Images by split; read while they are iterated. Only `ALL` if the dataset states no splits."""
    sizes: dict[str, int]
    """Images of each split, as its annotations list them."""
    keypoints: int = 0
    """Number of key points of an object; 0 without any."""
    keypoint_names: list[str] = field(default_factory=list)
    """Names of the key points, if all classes with key points have the same."""
    notes: Counter[str] = field(default_factory=Counter)
    """What was left out, and how often; complete when the splits are."""


def split_of(path: Path, root: Path) -> str:
    """Return the split that the name of a file or of its folder states, such as instances_val2017 or valid.

    Args:
        path: of the file.
        root: of the dataset, whose own name states nothing.

    Returns:
        `ALL` if they state none.
    """
    for text in (path.stem, path.parent.name if path.parent != root else ""):
        for word in re.findall(r"[a-z]+", text.lower()):
            if word in _SPLIT_WORDS:
                return _SPLIT_WORDS[word]
    return ALL


def used_size(stated: tuple[int | None, int | None], file: Path) -> tuple[int, int] | None:
    """Return (width, height) to which the coordinates of an image refer.

    Args:
        stated: width and height in the annotations.
        file: the image.

    Returns:
        None if the annotations are for the image as it is stored, and its EXIF data turns it.
    """
    try:
        with Image.open(file, formats=IMAGE_FORMATS) as image:
            stored, turned = image.size, tuple(map(int, exif_size(image)))
    except Exception:  # noqa: BLE001 - an untrusted file may raise anything; the scan of the training says what
        stored = turned = (1, 1)
    width, height = stated
    if not width or not height or width < 1 or height < 1:
        return turned[0], turned[1]
    return None if stored == (width, height) != turned else (width, height)


@dataclass(frozen=True, kw_only=True)
class ImageFinder:
    """Finds the images of a dataset by the names in its annotations."""

    root: Path
    """The dataset, without links."""
    boundary: Path | None
    """Folder that links must not leave; None if they may lead anywhere."""
    field: str
    """Names the dataset in messages."""

    def error(self, message: str) -> BadInput:
        return BadInput(Reason.INVALID_DATASET, f"{self.field}: {message}")

    def find(self, name: str, folders: Iterable[Path], source: Path) -> Path | None:
        """Return the file of an image; None if it does not exist.

        Args:
            name: path of the image below one of the folders.
            folders: where to look, in order.
            source: file that states the name, for messages.

        Raises:
            BadInput: the name leads out of the dataset, or is no path.
        """
        if not is_relative_path(name):
            raise self.error(f"{source}: the image {name[:200]!r} is not a path inside the dataset")
        for folder in folders:
            path = folder / name
            if path.is_file():
                self.check_link(path)
                return path
        return None

    def check_link(self, path: Path) -> None:
        """Check that a file is in the volume.

        Raises:
            BadInput: it is a link that leads out.
        """
        if self.boundary and not path.resolve().is_relative_to(self.boundary):
            raise self.error(f"{path}: is a link out of the volume; copy the data into it")
