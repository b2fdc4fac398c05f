"""Annotations of images, independent of the format of their files."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt
from PIL import Image
from ultralytics.data.utils import exif_size

from yolojob.api.reasons import Reason
from yolojob_trainer.data.dataset_description import SEARCH_DEPTH
from yolojob_trainer.errors import BadInput

Points = npt.NDArray[np.float64]
"""(points, 2): x and y in pixels."""
Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels."""

Image.init()
IMAGE_FORMATS = tuple(
    name
    for name in ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
    if name in Image.OPEN
)
"""Pillow's names of the formats that are read. It would give others to programs: PostScript to Ghostscript."""
MAX_NAME = 200
"""Characters of the name of a class."""
MAX_DIGITS = 30
"""Of an id, or of a number of pixels."""
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


def folders_of(root: Path) -> Iterator[Path]:
    """Yield the dataset's folder and those below it in which annotations are searched; links to folders are not."""
    level = [root]
    yield root
    for _ in range(SEARCH_DEPTH):
        level = sorted(folder for parent in level for folder in _folders_in(parent))
        yield from level


def _folders_in(parent: Path) -> list[Path]:
    """Return the folders in a folder. Looks at no file: a dataset on a network may have a million."""
    try:
        with os.scandir(parent) as entries:
            folders = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
            return [Path(entry.path) for entry in folders if entry.name != "__MACOSX"]
    except OSError:
        return []


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
                if self.boundary and not path.resolve().is_relative_to(self.boundary):
                    raise self.error(f"{path}: is a link out of the volume; copy the data into it")
                return path
        return None


def integer(value: Any) -> int | None:
    """Return an integer that may be written as 1, 1.0 or "1"; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str) or len(str(value)) > MAX_DIGITS:
        return None
    if isinstance(value, int) or (isinstance(value, str) and re.fullmatch("[+-]?[0-9]+", value)):
        return int(value)  # exactly, unlike a float: ids may have 64 bits
    try:
        number = float(value)
    except ValueError:
        return None
    return int(number) if number.is_integer() else None


def has_control_characters(text: str) -> bool:
    """Return whether a text has characters that end a line, or that change what a terminal shows."""
    return any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text)


def is_class_name(name: object) -> TypeGuard[str]:
    """Return whether a value from a file is a name for a class."""
    return isinstance(name, str) and 0 < len(name) <= MAX_NAME and not has_control_characters(name)


def is_relative_path(name: str) -> bool:
    """Return whether a text is a path that stays inside its folder, and that the file system accepts."""
    parts = name.split("/")
    return (
        not has_control_characters(name)
        and not name.startswith("/")
        and ".." not in parts
        and len(name.encode()) < 4000
        and all(len(part.encode()) <= 250 for part in parts)
    )
