"""Converts annotated datasets to Ultralytics' layout: a data file, `images/SPLIT` and `labels/SPLIT`."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import yaml
from ultralytics.data.converter import merge_multi_segment

from yolojob.api.task import Task
from yolojob_trainer.data.dataset_folders import folders_of
from yolojob_trainer.data.formats import coco, voc
from yolojob_trainer.data.formats.annotation import (
    ALL,
    TEST,
    TRAIN,
    VAL,
    AnnotatedDataset,
    AnnotatedImage,
    Annotation,
    ImageFinder,
    Points,
)

FORMAT = 1
"""Of the converted dataset; raise it with every change of what a conversion writes."""
SUMMARY = "conversion.txt"
"""What a conversion has found, for people."""
DATA_FILE = "data.yaml"
MAX_MERGED_POINTS = 1000
"""Points of a part of an outline: the time to merge two parts is the product of their points."""
TASKS = (Task.DETECT, Task.SEGMENT, Task.POSE, Task.OBB, Task.SEMANTIC)
"""The tasks whose labels annotations describe."""

Place = Callable[[Path, Path], None]
"""Makes an image available: (existing file, path in the new dataset)."""
Count = Callable[[int, int], None]
"""Called with (images done, all images)."""


@dataclass(frozen=True, kw_only=True)
class ConversionSettings:
    """How to convert a dataset."""

    task: Task
    """Decides what a row of a label file contains."""
    place: Place
    """Makes the images available."""
    count: Count
    """Called for each image."""
    val: float = 0.0
    """Share of the images for the validation, if the dataset has no split for it; 0 demands one."""
    needed: str = VAL
    """The split for the validation."""


@dataclass(frozen=True, kw_only=True)
class ConversionResult:
    """What a conversion has done."""

    format: str
    images: dict[str, int]
    """Images by split."""
    objects: int
    classes: int
    notes: Counter[str]
    """What was left out or replaced, and how often."""

    def summary(self) -> list[str]:
        """Return lines for people."""
        splits = ", ".join(f"{split} {count}" for split, count in self.images.items())
        found = f"{self.format}: {self.objects} objects of {self.classes} classes in {sum(self.images.values())} images"
        return [f"{found} ({splits})", *(f"{count} {note}" for note, count in self.notes.items())]


def find(finder: ImageFinder, task: Task) -> AnnotatedDataset:
    """Return the annotations of a dataset.

    Raises:
        BadInput: they are not valid, or it has none in a format that is known.
    """
    unknown: coco.NotJson | None = None
    try:
        dataset = coco.read(coco.annotation_files(finder.root, task), finder, task)
    except coco.NotJson as error:
        dataset, unknown = None, error
    dataset = dataset or voc.read(voc.annotation_files(finder.root), finder)
    if dataset is None:
        none = f"{finder.root}: has no annotations in COCO's JSON format or Pascal VOC's XML format"
        raise unknown or finder.error(none)
    return dataset


def annotation_files(root: Path, task: Task) -> list[Path]:
    """Return the files below a folder that may hold annotations, by their names."""
    return coco.annotation_files(root, task) + [file for part in voc.annotation_files(root).values() for file in part]


def fingerprint(root: Path, task: Task) -> str:
    """Return a text that changes with the annotations, the lists of the splits, and the folders of a dataset."""
    files: dict[str, list[Path]] = {
        **voc.annotation_files(root),
        "coco": coco.annotation_files(root, task),
        "lists": voc.list_files(root),
        "folders": list(folders_of(root)),
    }
    digest = hashlib.sha256(f"{FORMAT}\0{task}\0".encode() + os.fsencode(root))
    for kind, paths in files.items():
        for path in paths:
            info = path.stat()
            size = 0 if kind == "folders" else info.st_size
            digest.update(os.fsencode(path) + f"\0{kind}\0{size}\0{info.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:32]


def write(
    dataset: AnnotatedDataset, target: Path, finder: ImageFinder, settings: ConversionSettings
) -> ConversionResult:
    """Write a dataset in Ultralytics' layout.

    Args:
        dataset: annotations.
        target: an empty folder.
        finder: of the dataset, for messages.
        settings: of the conversion.

    Raises:
        BadInput: the dataset cannot be converted.
    """
    task = settings.task
    if task not in TASKS:
        raise finder.error(f"{dataset.format} describes no labels for the task {task}, but for {', '.join(TASKS)}")
    splits = _used_splits(dataset, finder, settings)
    writer = _Writer(dataset, target, finder, settings)
    total, done = sum(dataset.sizes.get(split, 0) for split in dataset.splits), 0
    for split, images in splits.items():
        for image in images:
            writer.add(split, image)
            done += 1
            settings.count(done, max(total, done))
    return writer.finish(settings.needed)


def _used_splits(
    dataset: AnnotatedDataset, finder: ImageFinder, settings: ConversionSettings
) -> dict[str, Iterable[AnnotatedImage]]:
    """Return the splits, with one for the validation.

    Raises:
        BadInput: the dataset has none.
    """
    splits = dict(dataset.splits)
    if settings.needed in splits:
        return splits
    if settings.val:
        return _with_validation(splits, settings.val)
    if settings.needed == VAL and TEST in splits and TRAIN in splits:  # as in VOC2007
        return {TRAIN: splits[TRAIN], VAL: splits[TEST]}
    raise finder.error(
        f"{dataset.format}: the annotations have no split named {settings.needed} for the validation; take a share of "
        "the images for it with `yolojob convert data SRC DST --val 0.1`"
    )


def _with_validation(splits: dict[str, Iterable[AnnotatedImage]], share: float) -> dict[str, Iterable[AnnotatedImage]]:
    """Return the splits with one for the validation: a random share of the images, which depends on their names only.

    It is taken from the images for the training, and has at least one of them.
    """
    name = next(split for split in (TRAIN, ALL, *splits) if split in splits)
    images = sorted(splits[name], key=lambda image: hashlib.sha256(os.fsencode(image.name)).digest())
    count = max(round(share * len(images)), 1)
    others = {split: part for split, part in splits.items() if split != name}
    return {TRAIN: images[count:], VAL: images[:count], **others}


class _Writer:
    """Writes the images and labels of a dataset one by one."""

    def __init__(
        self, dataset: AnnotatedDataset, target: Path, finder: ImageFinder, settings: ConversionSettings
    ) -> None:
        self._dataset, self._target, self._finder = dataset, target, finder
        self._task, self._place = settings.task, settings.place
        self._ids = {name: number for number, name in enumerate(dataset.names)}
        self._written: dict[Path, str] = {}
        """Images by their label files."""
        self._images: Counter[str] = Counter()
        self._objects = self._outlines = 0
        self._keypoints = len(dataset.keypoint_names) or dataset.keypoints

    def add(self, split: str, image: AnnotatedImage) -> None:
        # Ultralytics finds a label by the last folder named images in the path of its image.
        name = PurePosixPath(*(part for part in image.name.split("/") if part != "images"))
        label = self._label(split, name)
        while self._written.get(label, image.name) != image.name:  # of another image, with another suffix
            name = name.with_stem(f"{name.stem}-{name.suffix[1:]}")
            label = self._label(split, name)
        rows = list(self._rows(image))
        if label not in self._written:
            path = self._target / "images" / split / name
            for folder in (path.parent, label.parent):
                folder.mkdir(parents=True, exist_ok=True)
            self._place(image.file, path)
            self._images[split] += 1
        with label.open("a", encoding="utf-8") as file:
            file.writelines(rows)
        self._written[label] = image.name
        self._objects += len(rows)

    def _label(self, split: str, name: PurePosixPath) -> Path:
        return (self._target / "labels" / split / name).with_suffix(".txt")

    def finish(self, needed: str) -> ConversionResult:
        """Write the data file and the summary.

        Args:
            needed: the split for the validation.

        Raises:
            BadInput: nothing was written, or nothing that the task needs.
        """
        dataset, task = self._dataset, self._task
        missing = [split for split in (TRAIN, needed) if not self._images[split]]
        if missing:
            notes = "".join(f"; {count} {note}" for note, count in dataset.notes.items())
            raise self._finder.error(f"{dataset.format}: there are no images for {' and '.join(missing)}{notes}")
        if task in (Task.SEGMENT, Task.SEMANTIC) and not self._outlines:
            raise self._finder.error(f"{dataset.format}: has boxes, but no polygons or masks, which {task} needs")
        if task is Task.POSE and not self._keypoints:
            raise self._finder.error(f"{dataset.format}: has no key points, which {task} needs")
        content = {split: f"images/{split}" for split in self._images}
        settings = _keypoint_settings(dataset, self._keypoints) if task is Task.POSE else {}
        names = dict(enumerate(dataset.names))
        text = yaml.safe_dump({**content, "names": names, **settings}, sort_keys=False, allow_unicode=True)
        (self._target / DATA_FILE).write_text(text, encoding="utf-8")
        result = ConversionResult(
            format=dataset.format,
            images=dict(self._images),
            objects=self._objects,
            classes=len(names),
            notes=dataset.notes,
        )
        (self._target / SUMMARY).write_text("\n".join(result.summary()) + "\n", encoding="utf-8")
        return result

    def _rows(self, image: AnnotatedImage) -> Iterator[str]:
        size = np.array([image.width, image.height], np.float64)
        for annotation in image.annotations:
            values = self._values(annotation, size)
            if values is None:
                self._dataset.notes["object(s) outside of their image are left out"] += 1
                continue
            yield f"{self._ids[annotation.name]} {' '.join(f'{value:.6g}' for value in values)}\n"

    def _values(self, annotation: Annotation, size: Points) -> list[float] | None:
        """Return the row of an object without its class, in shares of the image; None if nothing of it is inside."""
        corners = np.clip(np.array(annotation.box, np.float64).reshape(2, 2) / size, 0, 1)
        if not np.all(corners[1] > corners[0]):
            return None
        if self._task in (Task.DETECT, Task.POSE):
            box = [*corners.mean(0), *(corners[1] - corners[0])]
            return box if self._task is Task.DETECT else [*box, *self._keypoint_values(annotation, size)]
        outline = self._outline(annotation)
        if self._task is Task.OBB:
            outline = cv2.boxPoints(cv2.minAreaRect(outline.astype(np.float32)))
        return list(np.clip(outline / size, 0, 1).reshape(-1))

    def _outline(self, annotation: Annotation) -> Points:
        """Return the outline of an object as one polygon, in pixels; the corners of its box if it has no outline."""
        if not annotation.polygons:
            left, top, right, bottom = annotation.box
            if self._task is not Task.OBB:
                self._dataset.notes["object(s) without an outline get that of their box"] += 1
            return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
        self._outlines += 1
        if len(annotation.polygons) == 1:
            return annotation.polygons[0]
        parts = [part[:: -(-len(part) // MAX_MERGED_POINTS)] for part in annotation.polygons]
        return np.concatenate(merge_multi_segment(parts))

    def _keypoint_values(self, annotation: Annotation, size: Points) -> list[float]:
        points = annotation.keypoints
        if points is None or len(points) != self._keypoints:
            if points is not None:
                self._dataset.notes["object(s) with another number of key points count as unlabelled"] += 1
            return [0.0] * 3 * self._keypoints
        shares = points[:, :2] / size
        inside = np.all((shares >= 0) & (shares <= 1), axis=1)
        visibility = np.where(inside, points[:, 2], 0)
        return list(np.column_stack([np.where(visibility[:, None] > 0, shares, 0), visibility]).reshape(-1))


def _keypoint_settings(dataset: AnnotatedDataset, count: int) -> dict[str, object]:
    """Return what a data file says about key points. Names with left and right tell which ones a flip exchanges."""
    names = dataset.keypoint_names
    settings: dict[str, object] = {"kpt_shape": [count, 3]}
    lower = [name.lower() for name in names]
    swap = {"left": "right", "right": "left"}
    swapped = [re.sub("left|right", lambda match: swap[match[0]], name) for name in lower]
    if len(set(lower)) == count and set(swapped) == set(lower) and swapped != lower:
        settings["flip_idx"] = [lower.index(name) for name in swapped]
    else:
        dataset.notes["set of key points names no left and right, so images are not flipped: see flip_idx"] += 1
    return {**settings, "kpt_names": dict.fromkeys(range(len(dataset.names)), names)} if names else settings


def link(file: Path, path: Path) -> None:
    """Make an image available by a link."""
    path.symlink_to(file.resolve())


def copy(file: Path, path: Path) -> None:
    """Make an image available by a copy."""
    shutil.copyfile(file, path)
