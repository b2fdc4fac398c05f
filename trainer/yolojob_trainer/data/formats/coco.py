"""Reads annotations in COCO's JSON format: boxes, polygons, masks and key points."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from yolojob.api.task import Task
from yolojob_trainer.data.dataset_description import MAX_CLASSES
from yolojob_trainer.data.formats import rle
from yolojob_trainer.data.formats.annotation import (
    AnnotatedDataset,
    AnnotatedImage,
    Annotation,
    ImageFinder,
    Points,
    folders_of,
    split_of,
)

MAX_FILE_BYTES = 4 << 30
MAX_FILES = 20
"""Files of annotations in a folder. A folder with more has a file for each image, which is another format."""
OTHER_CONTENT = ("captions", "image_info", "panoptic", "stuff")
"""Begin the names of COCO's files that hold no objects."""
KEYPOINTS = "keypoints"
"""Part of the names of COCO's files with key points, of one class."""
KEYS = {"images", "annotations", "categories"}
MAX_NAME = 200
MAX_NUMBER = 1e7
"""Of a coordinate in pixels."""


def annotation_files(root: Path, task: Task) -> list[Path]:
    """Return the files that may hold annotations, by their names.

    Args:
        root: the dataset.
        task: of the training: COCO has files of their own for key points.
    """
    files: list[Path] = []
    for folder in folders_of(root):
        found = sorted(path for path in folder.glob("*.json") if not path.name.startswith((".", *OTHER_CONTENT)))
        files += found if len(found) <= MAX_FILES else []
    with_keypoints = [path for path in files if KEYPOINTS in path.name]
    if task is Task.POSE:
        return with_keypoints or files
    return [path for path in files if path not in with_keypoints] or files


def read(files: list[Path], finder: ImageFinder) -> AnnotatedDataset | None:
    """Read annotations; None if no file has any.

    Raises:
        BadInput: a file is not valid, or two are for the same split.
    """
    parts: dict[str, _CocoFile] = {}
    for path in files:
        part = _CocoFile.read(path, finder)
        if part is None:
            continue
        split = split_of(path.stem, path.parent.name)
        if split in parts:
            raise finder.error(f"{path} and {parts[split].path}: both are annotations for {split}; remove one of them")
        parts[split] = part
    if not parts:
        return None
    dataset = AnnotatedDataset(
        format="COCO",
        names=_names(list(parts.values()), finder),
        splits={},
        sizes={split: len(part.images) for split, part in parts.items()},
        keypoint_names=_keypoint_names(list(parts.values())),
    )
    for split, part in parts.items():
        dataset.splits[split] = _CocoImages(part, finder, dataset)
    return dataset


@dataclass(frozen=True, kw_only=True)
class _CocoFile:
    """A file of annotations."""

    path: Path
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: dict[Any, dict[str, Any]]
    """By id, in the order of the ids."""

    @classmethod
    def read(cls, path: Path, finder: ImageFinder) -> _CocoFile | None:
        """Return the content of a file; None if it is not COCO's format.

        Raises:
            BadInput: it is, but it is not valid.
        """
        if finder.boundary and not path.resolve().is_relative_to(finder.boundary):
            raise finder.error(f"{path}: is a link out of the volume; copy the data into it")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise finder.error(f"{path}: is larger than {MAX_FILE_BYTES >> 30} GiB")
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            raise finder.error(f"{path}: is not valid JSON") from None
        if not isinstance(content, dict) or not set(content) >= KEYS:
            return None
        for key in KEYS:
            if not isinstance(content[key], list) or not all(isinstance(entry, dict) for entry in content[key]):
                raise finder.error(f"{path}: {key}: must be a list of objects")
        categories = {}
        for category in content["categories"]:
            name, number = category.get("name"), category.get("id")
            if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= MAX_NAME:
                raise finder.error(f"{path}: categories: {str(name)[:MAX_NAME]!r} is no name for a class")
            if not isinstance(number, int) or number in categories:
                raise finder.error(f"{path}: categories: {name}: the id {number!r} must be a number of its own")
            categories[number] = category
        return cls(
            path=path,
            images=content["images"],
            annotations=content["annotations"],
            categories=dict(sorted(categories.items())),
        )


def _names(parts: list[_CocoFile], finder: ImageFinder) -> list[str]:
    """Return the names of the classes. Without the parents of other classes that no object has: Roboflow lists them.

    Raises:
        BadInput: there are none, or too many.
    """
    names: dict[str, None] = {}
    for part in parts:
        used = {annotation.get("category_id") for annotation in part.annotations if _is_hashable(annotation)}
        parents = {category.get("supercategory") for category in part.categories.values()}
        for number, category in part.categories.items():
            if number in used or category["name"] not in parents or category.get("supercategory") == category["name"]:
                names[category["name"]] = None
    if not 0 < len(names) <= MAX_CLASSES:
        raise finder.error(f"{parts[0].path}: categories: has {len(names)} classes; 1 to {MAX_CLASSES} are possible")
    return list(names)


def _is_hashable(annotation: dict[str, Any]) -> bool:
    return isinstance(annotation.get("category_id"), int)


def _keypoint_names(parts: list[_CocoFile]) -> list[str]:
    """Return the names of the key points, if all classes with key points have the same."""
    lists = [category.get("keypoints") for part in parts for category in part.categories.values()]
    lists = [names for names in lists if names]
    if not lists or any(names != lists[0] for names in lists) or not isinstance(lists[0], list):
        return []
    return [str(name)[:MAX_NAME] for name in lists[0]]


class _CocoImages:
    """The images of a split, read while they are iterated."""

    def __init__(self, part: _CocoFile, finder: ImageFinder, dataset: AnnotatedDataset) -> None:
        self._part, self._finder, self._dataset = part, finder, dataset

    def __iter__(self) -> Iterator[AnnotatedImage]:
        path = self._part.path
        root, split = self._finder.root, split_of(path.stem, path.parent.name)
        stem = path.stem.rpartition("_")[2]  # instances_val2017
        names = dict.fromkeys(("", "images", stem, split, f"images/{stem}", f"images/{split}"))
        folders = [path.parent, *(top / name for top in (path.parent.parent, root) for name in names)]
        folders = [folder for folder in dict.fromkeys(folders) if folder.is_relative_to(root) and folder.is_dir()]
        by_image: defaultdict[Any, list[dict[str, Any]]] = defaultdict(list)
        for annotation in self._part.annotations:
            if isinstance(annotation.get("image_id"), int | str):
                by_image[annotation["image_id"]].append(annotation)
        for image in self._part.images:
            name = image.get("file_name")
            if not isinstance(name, str):
                raise self._finder.error(f"{path}: images: {str(image)[:MAX_NAME]}: file_name: must be a path")
            name = name.replace("\\", "/").removeprefix("./")
            file = self._finder.find(name, folders, path)
            if file is None:
                self._dataset.notes["image(s) listed in the annotations do not exist"] += 1
                continue
            width, height = image.get("width"), image.get("height")
            if not isinstance(width, int) or not isinstance(height, int) or width < 1 or height < 1:
                raise self._finder.error(f"{path}: images: {name}: width and height must be numbers of pixels")
            rows = by_image.get(image.get("id"), []) if isinstance(image.get("id"), int | str) else []
            found = [self._annotation(row) for row in rows]
            yield AnnotatedImage(
                file=file, name=name, width=width, height=height, annotations=[row for row in found if row]
            )

    def _annotation(self, row: dict[str, Any]) -> Annotation | None:
        """Return an object; None, and a note, if it cannot be used."""
        notes = self._dataset.notes
        category = self._part.categories.get(row.get("category_id")) if _is_hashable(row) else None
        if category is None:
            notes["object(s) with an unknown category are left out"] += 1
            return None
        if row.get("iscrowd"):
            notes["group(s) of objects (iscrowd) are left out"] += 1
            return None
        try:
            polygons = _polygons(row.get("segmentation"))
            box = _box(row.get("bbox"), polygons)
            keypoints = _keypoints(row.get("keypoints"))
        except (ValueError, TypeError, KeyError, OverflowError):
            notes["object(s) with invalid coordinates are left out"] += 1
            return None
        return Annotation(name=category["name"], box=box, polygons=polygons, keypoints=keypoints)


def _numbers(values: Any) -> Points:
    """Return numbers as an array.

    Raises:
        ValueError: one is not finite, or too large.
        TypeError: they are no numbers.
    """
    array = np.array([float(value) for value in values], np.float64)
    if not np.all(np.abs(array) < MAX_NUMBER):
        raise ValueError("a coordinate is not finite")
    return array


def _polygons(segmentation: Any) -> list[Points]:
    """Return the parts of an outline: of polygons, or of a mask in run lengths."""
    if not segmentation:
        return []
    if isinstance(segmentation, dict):
        return rle.outlines(rle.decode(segmentation))
    parts = segmentation if isinstance(segmentation[0], list) else [segmentation]
    return [_numbers(part).reshape(-1, 2) for part in parts if len(part) >= 2 * rle.MIN_POINTS]


def _box(bbox: Any, polygons: list[Points]) -> tuple[float, float, float, float]:
    """Return the box, or that of the polygons if the file has none.

    Raises:
        ValueError: there is neither, or it is empty.
    """
    if bbox:
        left, top, width, height = _numbers(bbox)
        right, bottom = left + width, top + height
    elif polygons:
        points = np.concatenate(polygons)
        (left, top), (right, bottom) = points.min(0), points.max(0)
    else:
        raise ValueError("an object without a box")
    if not (right > left and bottom > top):
        raise ValueError("an empty box")
    return float(left), float(top), float(right), float(bottom)


def _keypoints(values: Any) -> Points | None:
    if not values:
        return None
    points = _numbers(values).reshape(-1, 3)
    if not all(value in (0, 1, 2) for value in points[:, 2]) or not math.isfinite(points.sum()):
        raise ValueError("a visibility is not 0, 1 or 2")
    return points
