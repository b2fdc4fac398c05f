"""Writes datasets in COCO's and Pascal VOC's formats, and converts them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from yolojob_trainer.data import builtin_digits
from yolojob_trainer.data.formats import conversion
from yolojob_trainer.data.formats.annotation import ImageFinder

from yolojob.api.task import Task

SIZE = builtin_digits.SIZE


SPLITS = ("train", "val")


KEYPOINTS = ["left_top", "right_top", "left_bottom", "right_bottom"]


def rows(folder: Path, split: str, limit: int = 20) -> dict[str, list[list[float]]]:
    """Return the rows of the first label files of a split by the stems of their images."""
    files = sorted((folder / "labels" / split).glob("*.txt"))[:limit]
    return {file.stem: [[float(v) for v in line.split()] for line in file.read_text().splitlines()] for file in files}


def coco(digits: Path, split: str, annotate: Callable[[list[float]], dict[str, Any]]) -> dict[str, Any]:
    """Return a part of a dataset in COCO's format; the ids of its classes are those of the digits, times ten."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (stem, labels) in enumerate(rows(digits, split).items()):
        name = next((digits / "images" / split).glob(f"{stem}.*")).name
        images.append({"id": number, "file_name": name, "width": SIZE, "height": SIZE})
        for row in labels:
            entry = {"id": len(annotations), "image_id": number, "category_id": int(row[0]) * 10, "iscrowd": 0}
            annotations.append({**entry, **annotate(row)})
    categories = [{"id": digit * 10, "name": f"digit {digit}", "supercategory": "digit"} for digit in range(10)]
    return {"images": images, "annotations": annotations, "categories": categories}


def with_box(row: list[float]) -> dict[str, Any]:
    x, y, width, height = (SIZE * value for value in row[1:5])
    return {"bbox": [x - width / 2, y - height / 2, width, height]}


def with_polygon(row: list[float]) -> dict[str, Any]:
    points = np.array(row[1:]).reshape(-1, 2) * SIZE
    (left, top), (right, bottom) = points.min(0), points.max(0)
    return {"bbox": [left, top, right - left, bottom - top], "segmentation": [points.reshape(-1).tolist()]}


def with_keypoints(row: list[float]) -> dict[str, Any]:
    points = np.array(row[5:]).reshape(-1, 3) * [SIZE, SIZE, 1]
    return {**with_box(row), "keypoints": points.reshape(-1).tolist(), "num_keypoints": len(points)}


Layout = Callable[[Path, Path, dict[str, dict[str, Any]]], None]


def place_images(digits: Path, split: str, target: Path, content: dict[str, Any]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for image in content["images"]:
        (target / image["file_name"]).write_bytes((digits / "images" / split / image["file_name"]).read_bytes())


def roboflow(root: Path, digits: Path, parts: dict[str, dict[str, Any]]) -> None:
    """Images beside their annotations; the first class is the parent of the others."""
    for split, content in parts.items():
        folder = root / {"val": "valid"}.get(split, split)
        place_images(digits, split, folder, content)
        parent = {"id": -1, "name": "digit", "supercategory": "none"}
        document = {**content, "categories": [parent, *content["categories"]]}
        (folder / "_annotations.coco.json").write_text(json.dumps(document))


def official(root: Path, digits: Path, parts: dict[str, dict[str, Any]]) -> None:
    """COCO's own layout, with its files of other content."""
    (root / "annotations").mkdir(parents=True)
    for split, content in parts.items():
        place_images(digits, split, root / f"{split}2017", content)
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
        (root / "annotations" / f"captions_{split}2017.json").write_text(json.dumps({**content, "annotations": []}))


def below_images(root: Path, digits: Path, parts: dict[str, dict[str, Any]]) -> None:
    (root / "wrapped" / "annotations").mkdir(parents=True)
    for split, content in parts.items():
        place_images(digits, split, root / "wrapped" / "images" / split, content)
        (root / "wrapped" / "annotations" / f"{split}.json").write_text(json.dumps(content))


def convert(root: Path, target: Path, task: Task = Task.DETECT, val: float = 0.0) -> conversion.ConversionResult:
    finder = ImageFinder(root=root.resolve(), boundary=root.resolve(), field="spec.dataset")
    annotations = conversion.find(finder, task)
    target.mkdir()
    settings = conversion.ConversionSettings(task=task, place=conversion.link, count=lambda *_: None, val=val)
    return conversion.write(annotations, target, finder, settings)


def check_equal(found: dict[str, list[list[float]]], expected: dict[str, list[list[float]]]) -> None:
    assert found.keys() == expected.keys()
    for stem, labels in expected.items():
        assert len(found[stem]) == len(labels)
        for one, other in zip(found[stem], labels, strict=True):
            assert one == pytest.approx(other, abs=1e-5)


def write_one(root: Path, annotation: dict[str, Any], **image: Any) -> None:
    """Write a dataset in COCO's format with one object in one image of 100 x 100 pixels in each split."""
    root.mkdir()
    pixels = np.zeros((100, 100, 3), np.uint8)
    for split in SPLITS:
        (root / split).mkdir()
        cv2.imwrite(str(root / split / "a.png"), pixels)
        entry = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 20, 30, 40], **annotation}
        images = [{"id": 1, "file_name": "a.png", "width": 100, "height": 100, **image}]
        document = {"images": images, "annotations": [entry], "categories": [{"id": 1, "name": "x"}]}
        (root / split / "a.json").write_text(json.dumps(document))


def edit(root: Path, split: str, **changes: Any) -> None:
    """Change the lists of a file of annotations."""
    path = root / split / "a.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def fingerprint(root: Path) -> str:
    return conversion.fingerprint(root, Task.DETECT)


def encode(mask: np.ndarray[Any, Any]) -> list[int]:
    """Return a mask's run lengths of zeros and ones, column by column."""
    runs, value = [0], 0
    for pixel in mask.T.reshape(-1):
        if pixel != value:
            runs, value = [*runs, 0], pixel
        runs[-1] += 1
    return runs


def compress(runs: list[int]) -> str:
    """Return run lengths in COCO's compressed form."""
    text = ""
    for number, run in enumerate(runs):
        rest = run - runs[number - 2] if number > 2 else run
        while True:
            bits, rest = rest & 31, rest >> 5
            more = rest != (-1 if bits & 16 else 0)
            text += chr(48 + (bits | 32 if more else bits))
            if not more:
                break
    return text


VOC = """<annotation><filename>old name.jpg</filename><size><width>{size}</width><height>{size}</height></size>
{objects}</annotation>"""


VOC_OBJECT = """<object><name>digit {name}</name><difficult>{difficult}</difficult><bndbox><xmin>{left}</xmin>
<ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"""


def voc(digits: Path, split: str, folder: Path, images: Path) -> list[str]:
    """Write a part of a dataset in Pascal VOC's format; return the names of the images without suffix."""
    for path in (folder, images):
        path.mkdir(parents=True, exist_ok=True)
    labels = rows(digits, split)
    for stem, objects in labels.items():
        text = ""
        for row in objects:
            x, y, width, height = (SIZE * value for value in row[1:5])
            box = {"left": x - width / 2 + 1, "top": y - height / 2 + 1, "right": x + width / 2}
            text += VOC_OBJECT.format(name=int(row[0]), difficult=0, bottom=y + height / 2, **box)
        image = next((digits / "images" / split).glob(f"{stem}.*"))
        (folder / f"{split}-{stem}.xml").write_text(VOC.format(size=SIZE, objects=text))
        (images / f"{split}-{image.name}").write_bytes(image.read_bytes())
    return [f"{split}-{stem}" for stem in labels]
