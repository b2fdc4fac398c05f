"""Reads annotations in COCO's JSON format: boxes, polygons, masks and key points."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from yolojob.api.reasons import Reason
from yolojob.api.task import Task
from yolojob_trainer.data.dataset_description import MAX_CLASSES, MAX_KEYPOINTS
from yolojob_trainer.data.dataset_folders import folders_of
from yolojob_trainer.data.formats import rle
from yolojob_trainer.data.formats.annotation import (
    TURNED,
    AnnotatedDataset,
    AnnotatedImage,
    Annotation,
    Box,
    ImageFinder,
    Points,
    split_of,
    used_size,
)
from yolojob_trainer.data.untrusted import MAX_NAME, integer, is_class_name
from yolojob_trainer.errors import BadInput

MAX_FILE_BYTES = 4 << 30
MAX_FILES = 20
"""Files of annotations in a folder. A folder with more has a file for each image, which is another format."""
OTHER_CONTENT = ("captions", "image_info", "panoptic", "stuff")
"""Begin the names of COCO's files that hold no objects."""
KEYPOINTS = "keypoints"
"""Part of the names of COCO's files with key points, of one class."""
KEYS = {"images", "annotations", "categories"}
OUTLINED = (Task.SEGMENT, Task.SEMANTIC, Task.OBB)
"""The tasks that use outlines."""
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
        found = sorted(
            path for path in folder.glob("*.json") if not path.name.startswith((".", *OTHER_CONTENT)) and path.is_file()
        )
        files += found if len(found) <= MAX_FILES else []
    with_keypoints = [path for path in files if KEYPOINTS in path.name]
    if task is Task.POSE:
        return with_keypoints or files
    return [path for path in files if path not in with_keypoints] or files


def read(files: list[Path], finder: ImageFinder, task: Task) -> AnnotatedDataset | None:
    """Read annotations; None if no file has any.

    Args:
        files: that may hold annotations.
        finder: of the dataset.
        task: of the training: only what it needs is read.

    Raises:
        BadInput: a file is not valid, or two are for the same split.
    """
    parts: dict[str, _CocoFile] = {}
    invalid: NotJson | None = None
    for path in files:
        try:
            part = _CocoFile.read(path, finder)
        except NotJson as error:
            invalid = error
            continue
        if part is None:
            continue
        split = split_of(path, finder.root)
        if split in parts:
            raise finder.error(f"{path} and {parts[split].path}: both are annotations for {split}; remove one of them")
        parts[split] = part
    if not parts:
        if invalid:
            raise invalid
        return None
    dataset = AnnotatedDataset(
        format="COCO",
        names=_names(list(parts.values()), finder),
        splits={},
        sizes={split: len(part.images) for split, part in parts.items()},
        keypoint_names=_keypoint_names(list(parts.values())),
        keypoints=_count_keypoints(list(parts.values())),
    )
    if max(dataset.keypoints, len(dataset.keypoint_names)) > MAX_KEYPOINTS:
        raise finder.error(f"{next(iter(parts.values())).path}: keypoints: has more than {MAX_KEYPOINTS} for an object")
    for split, part in parts.items():
        dataset.splits[split] = _CocoImages(part, finder, dataset, task)
    return dataset


@dataclass(frozen=True, kw_only=True)
class _CocoFile:
    """A file of annotations."""

    path: Path
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: dict[int, dict[str, Any]]
    """By id, in the order of the ids."""

    @classmethod
    def read(cls, path: Path, finder: ImageFinder) -> _CocoFile | None:
        """Return the content of a file; None if it is not COCO's format.

        Raises:
            BadInput: it is, but it is not valid.
        """
        finder.check_link(path)
        if path.stat().st_size > MAX_FILE_BYTES:
            raise finder.error(f"{path}: is larger than {MAX_FILE_BYTES >> 30} GiB")
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            raise NotJson(Reason.INVALID_DATASET, f"{finder.field}: {path}: is not valid JSON") from None
        if not isinstance(content, dict) or not set(content) >= KEYS:
            return None
        for key in KEYS:
            if not isinstance(content[key], list) or not all(isinstance(entry, dict) for entry in content[key]):
                raise finder.error(f"{path}: {key}: must be a list of objects")
        categories = {}
        for category in content["categories"]:
            name, number = category.get("name"), integer(category.get("id"))
            if not is_class_name(name):
                raise finder.error(f"{path}: categories: {str(name)[:MAX_NAME]!r} is no name for a class")
            if number is None or number in categories:
                shown = str(category.get("id"))[:MAX_NAME]
                raise finder.error(f"{path}: categories: {name}: the id {shown} must be a number of its own")
            categories[number] = category
        return cls(
            path=path,
            images=content["images"],
            annotations=content["annotations"],
            categories=dict(sorted(categories.items())),
        )


class NotJson(BadInput):
    """A file has the suffix of JSON, but another content. It may have nothing to do with the dataset."""


def _names(parts: list[_CocoFile], finder: ImageFinder) -> list[str]:
    """Return the names of the classes. Without the parents of other classes that no object has: Roboflow lists them.

    Raises:
        BadInput: there are none, or too many.
    """
    names: dict[str, None] = {}
    for part in parts:
        used = {integer(annotation.get("category_id")) for annotation in part.annotations}
        parents = {str(category.get("supercategory")) for category in part.categories.values()}
        for number, category in part.categories.items():
            if number in used or category["name"] not in parents or category.get("supercategory") == category["name"]:
                names[category["name"]] = None
    if not 0 < len(names) <= MAX_CLASSES:
        raise finder.error(f"{parts[0].path}: categories: has {len(names)} classes; 1 to {MAX_CLASSES} are possible")
    return list(names)


def _count_keypoints(parts: list[_CocoFile]) -> int:
    """Return the number of key points of the first object that has some."""
    found = (annotation.get("keypoints") for part in parts for annotation in part.annotations)
    return next((len(values) // 3 for values in found if isinstance(values, list) and values), 0)


def _keypoint_names(parts: list[_CocoFile]) -> list[str]:
    """Return the names of the key points, if all classes with key points have the same."""
    lists = [category.get("keypoints") for part in parts for category in part.categories.values()]
    lists = [names for names in lists if names]
    if not lists or any(names != lists[0] for names in lists) or not isinstance(lists[0], list):
        return []
    return [str(name)[:MAX_NAME] for name in lists[0]]


class _CocoImages:
    """The images of a split, read while they are iterated."""

    def __init__(self, part: _CocoFile, finder: ImageFinder, dataset: AnnotatedDataset, task: Task) -> None:
        self._part, self._finder, self._dataset, self._task = part, finder, dataset, task

    def __iter__(self) -> Iterator[AnnotatedImage]:
        path, notes = self._part.path, self._dataset.notes
        root, split = self._finder.root, split_of(self._part.path, self._finder.root)
        stem = path.stem.rpartition("_")[2]  # instances_val2017
        names = dict.fromkeys(("", "images", stem, split, f"images/{stem}", f"images/{split}"))
        folders = [path.parent, *(top / name for top in (path.parent.parent, root) for name in names)]
        folders = [folder for folder in dict.fromkeys(folders) if folder.is_relative_to(root) and folder.is_dir()]
        by_image: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        for annotation in self._part.annotations:
            by_image[_key(annotation.get("image_id"))].append(annotation)
        for image in self._part.images:
            name = image.get("file_name")
            if not isinstance(name, str):
                raise self._finder.error(f"{path}: images: {str(image)[:MAX_NAME]}: file_name: must be a path")
            name = name.replace("\\", "/").removeprefix("./")
            rows = by_image.pop(_key(image.get("id")), [])
            file = self._finder.find(name, folders, path)
            if file is None:
                notes["image(s) listed in the annotations do not exist"] += 1
                continue
            size = used_size((integer(image.get("width")), integer(image.get("height"))), file)
            if size is None:
                notes[TURNED] += 1
                continue
            found = [self._annotation(row, size) for row in rows]
            yield AnnotatedImage(
                file=file, name=name, width=size[0], height=size[1], annotations=[row for row in found if row]
            )
        if lost := sum(map(len, by_image.values())):
            notes["object(s) are of no image"] += lost

    def _annotation(self, row: dict[str, Any], size: tuple[int, int]) -> Annotation | None:
        """Return an object; None, and a note, if it cannot be used."""
        notes = self._dataset.notes
        number = integer(row.get("category_id"))
        category = self._part.categories.get(number) if number is not None else None
        if category is None:
            notes["object(s) with an unknown category are left out"] += 1
            return None
        if row.get("iscrowd") and not _is_mask_of_cvat(row):
            notes["group(s) of objects (iscrowd) are left out"] += 1
            return None
        try:
            # Only what the task needs: a fault in the rest does not matter.
            box = _box(row.get("bbox"))
            polygons = _polygons(row.get("segmentation"), size) if box is None or self._task in OUTLINED else []
            keypoints = _keypoints(row.get("keypoints")) if self._task is Task.POSE else None
            box = box or _box_around(polygons)
        except (ValueError, TypeError, KeyError, OverflowError):
            notes["object(s) with invalid coordinates are left out"] += 1
            return None
        return Annotation(name=category["name"], box=box, polygons=polygons, keypoints=keypoints)


def _is_mask_of_cvat(row: dict[str, Any]) -> bool:
    """Return whether an object is one that was drawn as a mask in CVAT, whose exporter marks each mask as a group.

    It adds `attributes` to every object, which COCO's own annotations do not have.
    """
    return isinstance(row.get("attributes"), dict) and isinstance(row.get("segmentation"), dict)


def _key(value: Any) -> str:
    """Return the id of an image, the same for 1, 1.0 and "1"."""
    number = integer(value)
    return str(value)[:MAX_NAME] if number is None else str(number)


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


def _polygons(segmentation: Any, size: tuple[int, int]) -> list[Points]:
    """Return the parts of an outline: of polygons, or of a mask in run lengths.

    Args:
        segmentation: of the file.
        size: width and height of the image.

    Raises:
        ValueError: it is not valid, or a mask has another size than the image.
        TypeError: it is not valid.
        KeyError: it is not valid.
    """
    if not segmentation:
        return []
    if isinstance(segmentation, dict):
        if [integer(side) for side in segmentation["size"]] != [size[1], size[0]]:
            raise ValueError("a mask of another size than its image")
        return rle.outlines(rle.decode(segmentation))
    parts = segmentation if isinstance(segmentation[0], list) else [segmentation]
    return [_numbers(part).reshape(-1, 2) for part in parts if len(part) >= 2 * rle.MIN_POINTS]


def _box(bbox: Any) -> Box | None:
    """Return the box; None if the file has none.

    Raises:
        ValueError: it is not valid.
        TypeError: it is not valid.
    """
    if not bbox or not any(bbox[2:]):
        return None
    left, top, width, height = _numbers(bbox)
    if not (width > 0 and height > 0):
        raise ValueError("an empty box")
    return float(left), float(top), float(left + width), float(top + height)


def _box_around(polygons: list[Points]) -> Box:
    """Return the box of an outline.

    Raises:
        ValueError: there is none, or it is empty.
    """
    if not polygons:
        raise ValueError("an object without a box")
    points = np.concatenate(polygons)
    (left, top), (right, bottom) = points.min(0), points.max(0)
    if not (right > left and bottom > top):
        raise ValueError("an empty box")
    return float(left), float(top), float(right), float(bottom)


def _keypoints(values: Any) -> Points | None:
    if not values:
        return None
    points = _numbers(values).reshape(-1, 3)
    if not all(value in (0, 1, 2) for value in points[:, 2]):
        raise ValueError("a visibility is not 0, 1 or 2")
    return points
