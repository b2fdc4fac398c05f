"""Datasets in COCO's and Pascal VOC's formats: what a conversion writes, what it refuses, and a training on one."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.cli import COMMAND, call, manifest, small
from ultralytics.data.utils import img2label_paths
from yolojob_trainer.data import builtin_digits
from yolojob_trainer.data.dataset_config import NodeFolders, open_dataset
from yolojob_trainer.data.formats import conversion, rle
from yolojob_trainer.data.formats.annotation import ImageFinder, split_of
from yolojob_trainer.errors import BadInput

from yolojob.api.spec import YoloTrainingJobSpec
from yolojob.api.task import Task

SIZE = builtin_digits.SIZE
SPLITS = ("train", "val")
KEYPOINTS = ["left_top", "right_top", "left_bottom", "right_bottom"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The built-in datasets in Ultralytics' layout, by name."""
    folders = {}
    for name in ("digits", "digits-seg", "digits-pose", "digits-obb"):
        folders[name] = tmp_path_factory.mktemp(name)
        builtin_digits.WRITERS[name](folders[name])
    return folders


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
    assert annotations is not None
    target.mkdir()
    settings = conversion.ConversionSettings(task=task, place=conversion.link, count=lambda *_: None, val=val)
    return conversion.write(annotations, target, finder, settings)


def check_equal(found: dict[str, list[list[float]]], expected: dict[str, list[list[float]]]) -> None:
    assert found.keys() == expected.keys()
    for stem, labels in expected.items():
        assert len(found[stem]) == len(labels)
        for one, other in zip(found[stem], labels, strict=True):
            assert one == pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize("layout", [roboflow, official, below_images])
@pytest.mark.parametrize("task", [Task.DETECT, Task.SEGMENT, Task.SEMANTIC])
def test_coco_gives_the_labels_that_it_was_made_from(
    digits: dict[str, Path], tmp_path: Path, layout: Layout, task: Task
) -> None:
    name, annotate = ("digits", with_box) if task is Task.DETECT else ("digits-seg", with_polygon)
    parts = {split: coco(digits[name], split, annotate) for split in SPLITS}
    layout(tmp_path / "source", digits[name], parts)
    result = convert(tmp_path / "source", tmp_path / "converted", task)
    assert (result.format, result.images, result.classes) == ("COCO", {"train": 20, "val": 20}, 10)
    assert not result.notes
    content = yaml.safe_load((tmp_path / "converted" / "data.yaml").read_text())
    assert content["names"] == {digit: f"digit {digit}" for digit in range(10)}
    for split in SPLITS:
        check_equal(rows(tmp_path / "converted", split), rows(digits[name], split))
        for image in (tmp_path / "converted" / "images" / split).iterdir():
            assert image.read_bytes() == (digits[name] / "images" / split / image.name).read_bytes()


@pytest.mark.parametrize("names", [KEYPOINTS, ["a", "b", "c", "d"], []])
def test_key_points_of_coco_are_converted_with_their_names(
    digits: dict[str, Path], tmp_path: Path, names: list[str]
) -> None:
    parts = {split: coco(digits["digits-pose"], split, with_keypoints) for split in SPLITS}
    for part in parts.values():
        part["categories"] = [{**category, "keypoints": names} for category in part["categories"]]
    official(tmp_path / "source", digits["digits-pose"], parts)
    convert(tmp_path / "source", tmp_path / "converted", Task.POSE)
    content = yaml.safe_load((tmp_path / "converted" / "data.yaml").read_text())
    assert content["kpt_shape"] == [4, 3]
    assert content.get("flip_idx") == ([1, 0, 3, 2] if names == KEYPOINTS else None)
    for split in SPLITS:
        check_equal(rows(tmp_path / "converted", split), rows(digits["digits-pose"], split))


def test_outline_becomes_the_smallest_rotated_box(tmp_path: Path) -> None:
    corners = cv2.boxPoints(((50.0, 60.0), (40.0, 20.0), 30.0))
    write_one(tmp_path / "source", {"segmentation": [corners.reshape(-1).tolist()]})
    convert(tmp_path / "source", tmp_path / "converted", Task.OBB)
    (row,) = rows(tmp_path / "converted", "train")["a"]
    found = np.array(row[1:]).reshape(4, 2) * 100
    distances = np.linalg.norm(found[:, None] - corners[None], axis=2)
    assert distances.min(1).max() < 0.01
    assert distances.min(0).max() < 0.01


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


@pytest.mark.parametrize(
    ("annotation", "note"),
    [
        ({"iscrowd": 1}, "group(s) of objects (iscrowd) are left out"),
        ({"category_id": 7}, "object(s) with an unknown category are left out"),
        ({"category_id": [1]}, "object(s) with an unknown category are left out"),
        ({"bbox": [1, 2, float("nan"), 3]}, "object(s) with invalid coordinates are left out"),
        ({"bbox": [1, 2, 1e300, 3]}, "object(s) with invalid coordinates are left out"),
        ({"bbox": [1, 2, 3]}, "object(s) with invalid coordinates are left out"),
        ({"bbox": "box"}, "object(s) with invalid coordinates are left out"),
        ({"bbox": [1, 2, -3, 4]}, "object(s) with invalid coordinates are left out"),
        ({"bbox": [], "segmentation": []}, "object(s) with invalid coordinates are left out"),
        (
            {"bbox": [], "segmentation": {"size": [9, 9], "counts": [1]}},
            "object(s) with invalid coordinates are left out",
        ),
        (
            {"bbox": None, "segmentation": {"size": [1 << 40, 9], "counts": "a"}},
            "object(s) with invalid coordinates are left out",
        ),
        ({"image_id": 77}, "object(s) are of no image"),
        ({"bbox": [200, 200, 5, 5]}, "object(s) outside of their image are left out"),
    ],
)
def test_object_that_cannot_be_used_is_left_out_and_counted(
    tmp_path: Path, annotation: dict[str, Any], note: str
) -> None:
    write_one(tmp_path / "source", annotation)
    result = convert(tmp_path / "source", tmp_path / "converted")
    assert result.notes == {note: 2}
    assert rows(tmp_path / "converted", "train") == {"a": []}
    assert f"2 {note}" in result.summary()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ({"file_name": "../../etc/passwd"}, "is not a path inside the dataset"),
        ({"file_name": "/etc/passwd"}, "is not a path inside the dataset"),
        ({"file_name": "a\nb.png"}, "is not a path inside the dataset"),
        ({"file_name": 3}, "file_name: must be a path"),
        ({"file_name": "b.png"}, "there are no images for train and val; 2 image.s. listed in the annotations do not"),
    ],
)
def test_image_that_cannot_be_used_is_refused(tmp_path: Path, image: dict[str, Any], message: str) -> None:
    write_one(tmp_path / "source", {}, **image)
    with pytest.raises(BadInput, match=f"spec.dataset: .*{message}"):
        convert(tmp_path / "source", tmp_path / "converted")


def test_image_that_is_a_link_out_of_the_volume_is_refused(tmp_path: Path) -> None:
    write_one(tmp_path / "source", {})
    outside = (tmp_path / "source" / "val" / "a.png").rename(tmp_path / "secret.png")
    (tmp_path / "source" / "val" / "a.png").symlink_to(outside)
    with pytest.raises(BadInput, match="is a link out of the volume"):
        convert(tmp_path / "source", tmp_path / "converted")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("[" * 100_000, "is not valid JSON"),
        ('{"images": [1], "annotations": [], "categories": []}', "images: must be a list of objects"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', "is no name for a class"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
            "categories: b: the id 1 must be a number of its own",
        ),
        ('{"images": [], "annotations": [], "categories": []}', "has 0 classes"),
    ],
)
def test_file_of_annotations_that_is_not_valid_is_refused(tmp_path: Path, document: str, message: str) -> None:
    (tmp_path / "train.json").write_text(document)
    with pytest.raises(BadInput, match=f"spec.dataset: .*train.json: .*{message}"):
        convert(tmp_path, tmp_path / "converted")


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Task.SEGMENT, "has boxes, but no polygons or masks, which segment needs"),
        (Task.POSE, "has no key points, which pose needs"),
        (Task.DEPTH, "describes no labels for the task depth"),
    ],
)
def test_annotations_without_what_the_task_needs_are_refused(tmp_path: Path, task: Task, message: str) -> None:
    write_one(tmp_path / "source", {})
    with pytest.raises(BadInput, match=f"spec.dataset: COCO:? {message}"):
        convert(tmp_path / "source", tmp_path / "converted", task)


def test_two_images_with_one_label_file_get_names_of_their_own(tmp_path: Path) -> None:
    write_one(tmp_path / "source", {})
    folder = tmp_path / "source" / "train"
    cv2.imwrite(str(folder / "a.jpg"), np.zeros((100, 100, 3), np.uint8))
    document = json.loads((folder / "a.json").read_text())
    document["images"].append({"id": 2, "file_name": "a.jpg", "width": 100, "height": 100})
    (folder / "a.json").write_text(json.dumps(document))
    convert(tmp_path / "source", tmp_path / "converted")
    found = rows(tmp_path / "converted", "train")
    assert {stem: len(labels) for stem, labels in found.items()} == {"a": 1, "a-jpg": 0}


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_dataset_without_a_split_needs_a_share_for_the_validation(
    digits: dict[str, Path], tmp_path: Path, share: float
) -> None:
    content = coco(digits["digits"], "train", with_box)
    place_images(digits["digits"], "train", tmp_path / "source" / "images", content)
    (tmp_path / "source" / "result.json").write_text(json.dumps(content))
    if not share:
        with pytest.raises(
            BadInput, match=r"no split named val for the validation; .*`yolojob convert data SRC DST --val 0.1`"
        ):
            convert(tmp_path / "source", tmp_path / "converted")
        return
    result = convert(tmp_path / "source", tmp_path / "converted", val=share)
    assert result.images == {"train": 15, "val": 5}
    both = rows(tmp_path / "converted", "train") | rows(tmp_path / "converted", "val")
    check_equal(both, rows(digits["digits"], "train"))


def test_mask_of_cvat_is_an_object_although_it_is_marked_as_a_group(tmp_path: Path) -> None:
    mask = {"size": [100, 100], "counts": [0, 100 * 100]}
    write_one(tmp_path / "source", {"iscrowd": 1, "segmentation": mask, "attributes": {"occluded": False}})
    result = convert(tmp_path / "source", tmp_path / "converted")
    assert (result.objects, dict(result.notes)) == (2, {})


def test_mask_of_another_size_than_its_image_is_left_out(tmp_path: Path) -> None:
    write_one(tmp_path / "source", {"bbox": [], "segmentation": {"size": [10_000, 10_000], "counts": [0, 10**8]}})
    result = convert(tmp_path / "source", tmp_path / "converted")
    assert result.notes == {"object(s) with invalid coordinates are left out": 2}


def test_too_many_key_points_are_refused(tmp_path: Path) -> None:
    write_one(tmp_path / "source", {"keypoints": [1, 1, 2] * 1001})
    with pytest.raises(BadInput, match="keypoints: has more than 1000 for an object"):
        convert(tmp_path / "source", tmp_path / "converted", Task.POSE)


def test_ids_of_64_bits_are_told_apart(tmp_path: Path) -> None:
    write_one(tmp_path / "source", {})
    for name in ("b.png", "c.png"):
        cv2.imwrite(str(tmp_path / "source" / "train" / name), np.zeros((100, 100, 3), np.uint8))
    ids = {"b.png": 2**53, "c.png": 2**53 + 1}
    images = [{"id": number, "file_name": name, "width": 100, "height": 100} for name, number in ids.items()]
    objects = [{"id": i, "image_id": ids[name], "category_id": 1, "bbox": [0, 0, 9, 9]} for i, name in enumerate(ids)]
    edit(tmp_path / "source", "train", images=images, annotations=objects)
    convert(tmp_path / "source", tmp_path / "converted")
    assert {stem: len(labels) for stem, labels in rows(tmp_path / "converted", "train").items()} == {"b": 1, "c": 1}


def test_what_only_looks_like_a_file_of_annotations_is_ignored(tmp_path: Path) -> None:
    root = tmp_path / "source"
    write_one(root, {})
    os.mkfifo(root / "pipe.json")
    os.mkfifo(root / "pipe.xml")
    (root / "gone.json").symlink_to(root / "nothing")
    (root / "folder.json").mkdir()
    (root / "out").symlink_to(tmp_path)
    assert len(fingerprint(root)) == 32
    assert convert(root, tmp_path / "converted").images == {"train": 1, "val": 1}


def test_list_of_a_split_outside_of_the_dataset_is_not_read(digits: dict[str, Path], tmp_path: Path) -> None:
    root = tmp_path / "source"
    names = voc(digits["digits"], "train", root / "Annotations", root / "JPEGImages")
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "list.txt").write_text("\n".join(names))
    for split in SPLITS:
        (root / "ImageSets" / "Main" / f"{split}.txt").symlink_to(tmp_path / "list.txt")
    with pytest.raises(BadInput, match="the annotations have no split named val"):
        convert(root, tmp_path / "converted")


@pytest.mark.processes
@pytest.mark.parametrize("planted", ["labels", "data.yaml", "conversion.txt", "loop"])
def test_link_that_somebody_has_put_into_a_converted_dataset_is_refused(tmp_path: Path, planted: str) -> None:
    source = tmp_path / "claim" / "source"
    source.parent.mkdir()
    write_one(source, {})
    spec = YoloTrainingJobSpec.model_validate(
        {"model": {"name": "yolo11n.yaml"}, "dataset": {"uri": "pvc://claim/source"}}
    )
    node = NodeFolders(cache=tmp_path / "cache", volumes=tmp_path)
    open_dataset(spec, source, Task.DETECT, node)
    (folder,) = (tmp_path / "cache" / "datasets").glob("converted-*")
    path = {"labels": folder / "labels" / "train" / "a.txt", "loop": folder / "images" / "train" / "a.png"}.get(
        planted, folder / planted
    )
    path.unlink()
    path.symlink_to(path if planted == "loop" else source / "train" / "a.json")
    with pytest.raises(BadInput, match="which is no image in the volume"):
        open_dataset(spec, source, Task.DETECT, node)


def edit(root: Path, split: str, **changes: Any) -> None:
    """Change the lists of a file of annotations."""
    path = root / split / "a.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("name", ["images/a.png", "images/train/a.png", "a b/größe\u202f1.png"])
def test_label_is_where_ultralytics_looks_for_it(tmp_path: Path, name: str) -> None:
    write_one(tmp_path / "source", {}, file_name=name)
    for split in SPLITS:
        (tmp_path / "source" / split / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / split / "a.png").rename(tmp_path / "source" / split / name)
    convert(tmp_path / "source", tmp_path / "converted")
    (image,) = [path for path in (tmp_path / "converted" / "images" / "train").rglob("*") if path.is_symlink()]
    (label,) = img2label_paths([str(image)])
    assert Path(label).read_text().startswith("0 0.25 0.4 ")


@pytest.mark.parametrize(
    ("image", "annotation"),
    [
        ({"id": "1"}, {}),
        ({"id": 1.0}, {"image_id": "1"}),
        ({"width": "100", "height": 100.0}, {"category_id": "1"}),
        ({"width": 0, "height": None}, {"category_id": 1.0}),
        ({}, {"bbox": [0, 0, 0, 0], "segmentation": [[10, 20, 40, 20, 40, 60, 10, 60]]}),
        ({}, {"keypoints": [1, 2, 0.87], "segmentation": {"size": [1, 1], "counts": "?"}}),
        ({}, {"segmentation": []}),
    ],
)
def test_numbers_of_other_types_and_parts_of_other_tasks_do_not_matter(
    tmp_path: Path, image: dict[str, Any], annotation: dict[str, Any]
) -> None:
    write_one(tmp_path / "source", annotation, **image)
    result = convert(tmp_path / "source", tmp_path / "converted")
    assert not result.notes
    assert rows(tmp_path / "converted", "train")["a"] == [pytest.approx([0, 0.25, 0.4, 0.3, 0.4])]


@pytest.mark.parametrize(
    ("stated", "used"), [({"width": 60, "height": 100}, True), ({}, True), ({"width": 100, "height": 60}, False)]
)
def test_image_that_exif_turns_is_used_if_its_annotations_are_turned(
    tmp_path: Path, stated: dict[str, int], used: bool
) -> None:
    write_one(tmp_path / "source", {"bbox": [6, 20, 30, 40]}, **{"width": None, "height": None, **stated})
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees: 60 wide and 100 high
    for split in SPLITS:
        Image.new("RGB", (100, 60)).save(tmp_path / "source" / split / "a.png", "JPEG", exif=exif)
    if not used:
        with pytest.raises(BadInput, match=r"2 image.s. are turned by EXIF data, but annotated as they are stored"):
            convert(tmp_path / "source", tmp_path / "converted")
        return
    convert(tmp_path / "source", tmp_path / "converted")
    assert rows(tmp_path / "converted", "train")["a"] == [pytest.approx([0, 0.35, 0.4, 0.5, 0.4])]


def test_objects_without_key_points_before_others_get_a_whole_row(tmp_path: Path) -> None:
    write_one(tmp_path / "source", {})
    first = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 20, 30, 40]}
    for split in SPLITS:
        edit(tmp_path / "source", split, annotations=[first, {**first, "id": 2, "keypoints": [15, 25, 2, 20, 30, 1]}])
    result = convert(tmp_path / "source", tmp_path / "converted", Task.POSE)
    expected = [[0, 0.25, 0.4, 0.3, 0.4, *[0.0] * 6], [0, 0.25, 0.4, 0.3, 0.4, 0.15, 0.25, 2, 0.2, 0.3, 1]]
    assert rows(tmp_path / "converted", "train")["a"] == [pytest.approx(row) for row in expected]
    assert any("images are not flipped" in note for note in result.notes)


def test_images_with_one_label_file_get_names_of_their_own_again(tmp_path: Path) -> None:
    write_one(tmp_path / "source", {})
    names = ["a-jpg.jpg", "a.png", "a.jpg"]
    for name in names:
        cv2.imwrite(str(tmp_path / "source" / "train" / name), np.zeros((100, 100, 3), np.uint8))
    images = [{"id": i, "file_name": name, "width": 100, "height": 100} for i, name in enumerate(names)]
    objects = [{"id": i, "image_id": i, "category_id": 1, "bbox": [10 * i, 0, 10, 10]} for i in range(3)]
    edit(tmp_path / "source", "train", images=images, annotations=objects)
    convert(tmp_path / "source", tmp_path / "converted")
    found = {stem: labels[0][1] for stem, labels in rows(tmp_path / "converted", "train").items()}
    assert found == pytest.approx({"a-jpg": 0.05, "a": 0.15, "a-jpg-jpg": 0.25})
    assert len(list((tmp_path / "converted" / "images" / "train").iterdir())) == 3


def test_names_without_a_suffix_end_in_names_of_their_own(tmp_path: Path) -> None:
    write_one(tmp_path / "source", {})
    folder = tmp_path / "source" / "train"
    (folder / "images").mkdir()
    for name in ("a", "images/a"):
        (folder / name).write_bytes(b"x")
    images = [{"id": i, "file_name": name, "width": 9, "height": 9} for i, name in enumerate(("a", "images/a"))]
    edit(tmp_path / "source", "train", images=images)
    convert(tmp_path / "source", tmp_path / "converted")
    assert {path.name for path in (tmp_path / "converted" / "images" / "train").iterdir()} == {"a", "a-"}


def test_split_that_the_job_validates_with_is_demanded(tmp_path: Path) -> None:
    write_one(tmp_path / "source", {})
    (tmp_path / "source" / "val").rename(tmp_path / "source" / "test")
    finder = ImageFinder(root=tmp_path / "source", boundary=None, field="spec.dataset")
    for needed, splits in (("test", {"train", "test"}), ("val", {"train", "val"})):
        annotations = conversion.find(finder, Task.DETECT)
        assert annotations is not None
        (tmp_path / needed).mkdir()
        settings = conversion.ConversionSettings(
            task=Task.DETECT, place=conversion.link, count=lambda *_: None, needed=needed
        )
        assert set(conversion.write(annotations, tmp_path / needed, finder, settings).images) == splits


def fingerprint(root: Path) -> str:
    return conversion.fingerprint(root, Task.DETECT)


def test_fingerprint_changes_with_the_dataset_and_not_with_its_neighbours(tmp_path: Path) -> None:
    root = tmp_path / "source"
    write_one(root, {})
    lists = root / "voc" / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (root / "voc" / "Annotations").mkdir()
    for name in ("x", "y"):
        (root / "voc" / "Annotations" / f"{name}.xml").write_text("<annotation/>")
        (lists / {"x": "train.txt", "y": "val.txt"}[name]).write_text(name)
    seen = [fingerprint(root)]
    assert fingerprint(root) == seen[0]
    changes: list[Callable[[], object]] = [
        lambda: edit(root, "train", more=1),
        lambda: (root / "train" / "new.png").write_bytes(b"x"),
        lambda: [(lists / "train.txt").write_text("x\ny"), (lists / "val.txt").write_text("")],
    ]
    for change in changes:
        change()
        seen.append(fingerprint(root))
    assert len(set(seen)) == len(seen)
    (tmp_path / "neighbour").mkdir()
    assert fingerprint(root) == seen[-1]
    assert conversion.fingerprint(root, Task.SEGMENT) != seen[-1]


def test_file_that_is_no_json_does_not_hide_other_annotations(digits: dict[str, Path], tmp_path: Path) -> None:
    for split in SPLITS:
        voc(digits["digits"], split, tmp_path / "source" / split, tmp_path / "source" / split)
    (tmp_path / "source" / "notes.json").write_text("{not json")
    (tmp_path / "source" / "train" / "._a.xml").write_bytes(b"\0\5\26\7")
    assert convert(tmp_path / "source", tmp_path / "converted").format == "Pascal VOC"


def test_voc_with_folders_of_splits_and_names_with_spaces(digits: dict[str, Path], tmp_path: Path) -> None:
    for split in SPLITS:
        voc(digits["digits"], split, tmp_path / "a" / "annotations" / split, tmp_path / "a" / "images" / split)
    assert convert(tmp_path / "a", tmp_path / "a-converted").images == {"train": 20, "val": 20}

    root = tmp_path / "b"
    for split in SPLITS:
        names = voc(digits["digits"], split, root / "Annotations", root / "JPEGImages")
        for folder, suffix in (("Annotations", "xml"), ("JPEGImages", "png")):
            (root / folder / f"{names[0]}.{suffix}").rename(root / folder / f"my {split}.{suffix}")
        (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join([f'"my {split}"', *names[1:]]))
    assert convert(root, tmp_path / "b-converted").images == {"train": 20, "val": 20}


@pytest.mark.parametrize(("config", "files"), [("sings.yaml", []), ("data.yaml", ["other.yaml"])])
def test_data_file_that_is_missing_is_not_replaced_by_annotations(
    tmp_path: Path, config: str, files: list[str]
) -> None:
    write_one(tmp_path / "source", {})
    for name in files:
        (tmp_path / "source" / name).write_text("names: [a]")
    dataset = {"uri": f"file://{tmp_path}/source", "config": config}
    spec = YoloTrainingJobSpec.model_validate({"model": {"name": "yolo11n.yaml"}, "dataset": dataset})
    node = NodeFolders(cache=tmp_path / "cache", volumes=tmp_path)
    with pytest.raises(BadInput, match=f"spec.dataset.config: {config}: not in "):
        open_dataset(spec, tmp_path / "source", Task.DETECT, node)


@pytest.mark.processes
def test_converted_dataset_is_reused_and_its_links_are_checked_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "claim" / "source"
    source.parent.mkdir()
    write_one(source, {"iscrowd": 1})
    dataset = {"uri": "pvc://claim/source"}
    spec = YoloTrainingJobSpec.model_validate({"model": {"name": "yolo11n.yaml"}, "dataset": dataset})
    node = NodeFolders(cache=tmp_path / "cache", volumes=tmp_path)
    for _ in range(2):
        assert open_dataset(spec, source, Task.DETECT, node).description.names == {0: "x"}
        assert "2 group(s) of objects (iscrowd) are left out" in capsys.readouterr().err
    assert len(list((tmp_path / "cache" / "datasets").glob("converted-*"))) == 1
    image = source / "train" / "a.png"
    times = (image.parent.stat().st_atime_ns, image.parent.stat().st_mtime_ns)
    image.rename(tmp_path / "secret.png")
    image.symlink_to(tmp_path / "secret.png")
    os.utime(image.parent, ns=times)
    with pytest.raises(BadInput, match="which is no image in the volume"):
        open_dataset(spec, source, Task.DETECT, node)


def test_outline_of_several_parts_and_run_lengths_give_a_mask_of_their_pixels(tmp_path: Path) -> None:
    mask = np.zeros((100, 100), np.uint8)
    mask[20:40, 10:30] = mask[50:80, 40:90] = 1
    polygons = [[10, 20, 29, 20, 29, 39, 10, 39], [40, 50, 89, 50, 89, 79, 40, 79]]
    for name, segmentation in (("parts", polygons), ("mask", {"size": [100, 100], "counts": encode(mask)})):
        write_one(tmp_path / name, {"segmentation": segmentation})
        convert(tmp_path / name, tmp_path / f"{name}-converted", Task.SEGMENT)
        (row,) = rows(tmp_path / f"{name}-converted", "train")["a"]
        drawn = np.zeros((100, 100), np.uint8)
        cv2.fillPoly(drawn, [np.rint(np.array(row[1:]).reshape(-1, 2) * 100).astype(np.int32)], 1)
        assert np.mean(drawn == mask) > 0.99  # a thin line joins the parts


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


@given(st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=1, max_size=40))
def test_any_mask_is_decoded_from_both_forms_of_run_lengths(rows: list[list[bool]]) -> None:
    mask = np.array(rows, np.uint8)
    runs = encode(mask)
    for counts in (runs, compress(runs)):
        assert np.array_equal(rle.decode({"size": list(mask.shape), "counts": counts}), mask)


@given(st.text(alphabet=[chr(code) for code in range(33, 127)], max_size=60), st.integers(1, 50), st.integers(1, 50))
def test_any_text_as_run_lengths_gives_a_mask_or_an_error(text: str, height: int, width: int) -> None:
    try:
        mask = rle.decode({"size": [height, width], "counts": text})
    except ValueError:
        return
    assert mask.shape == (height, width)


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


@pytest.mark.parametrize("layout", ["lists", "folders"])
def test_voc_gives_the_labels_that_it_was_made_from(digits: dict[str, Path], tmp_path: Path, layout: str) -> None:
    source = tmp_path / "source"
    for split in SPLITS:
        if layout == "folders":
            voc(digits["digits"], split, source / split, source / split)
            continue
        root = source / "VOCdevkit" / "VOC2012"
        names = voc(digits["digits"], split, root / "Annotations", root / "JPEGImages")
        (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names))
    result = convert(source, tmp_path / "converted")
    assert (result.format, result.images, result.classes) == ("Pascal VOC", {"train": 20, "val": 20}, 10)
    for split in SPLITS:
        labels = tmp_path / "converted" / "labels" / split
        flat = tmp_path / f"flat-{split}" / "labels" / split
        flat.mkdir(parents=True)
        for file in labels.rglob("*.txt"):
            file.rename(flat / file.name.removeprefix(f"{split}-"))
        check_equal(rows(tmp_path / f"flat-{split}", split), rows(digits["digits"], split))


BOMB = '<!DOCTYPE a [<!ENTITY x "y"><!ENTITY z "&x;&x;">]><annotation>&z;</annotation>'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "defines entities"),
        ("<annotation>", "is not valid XML"),
        ("", "is not valid XML"),
        (" " * (2 << 20), "is larger than 1 MiB"),
        ("<annotation><object><name>a\x7fb</name></object></annotation>", "is no name for a class"),
        ("<annotation><object></object></annotation>", "is no name for a class"),
    ],
)
def test_xml_that_is_not_valid_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.xml").write_text(text)
    with pytest.raises(BadInput, match=f"spec.dataset: .*{message}"):
        convert(tmp_path / "source", tmp_path / "converted")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("instances_train2017", "train"),
        ("instances_val2017", "val"),
        ("valid", "val"),
        ("Validation-1", "val"),
        ("test", "test"),
        ("result", "all"),
        ("trains", "all"),
        ("valid/_annotations.coco", "val"),
        ("train/instances_val", "val"),
        ("evaluate", "all"),
    ],
)
def test_split_is_found_in_a_name(name: str, split: str) -> None:
    root = Path("/data/test")  # the name of the dataset states nothing
    assert split_of(root / f"{name}.json", root) == split


@pytest.mark.processes
def test_training_converts_annotations_on_first_use_and_changes_no_file_of_the_user(
    digits: dict[str, Path], tmp_path: Path
) -> None:
    source = tmp_path / "volumes" / "claim" / "export"
    parts = {split: coco(digits["digits"], split, with_box) for split in SPLITS}
    roboflow(source, digits["digits"], parts)
    before = {path: path.stat().st_mtime_ns for path in source.rglob("*")}
    document = small(dataset={"uri": "pvc://claim/export"}, workers={"replicas": 2})
    done = call(tmp_path, tmp_path / "cache", "run", manifest(tmp_path, document))
    assert done.returncode == 0, done.stderr + done.stdout
    log = (tmp_path / "runs" / "small" / "train.log").read_text()
    objects = sum(len(labels) for split in SPLITS for labels in rows(digits["digits"], split).values())
    assert f"COCO: {objects} objects of 10 classes in 40 images (train 20, val 20)" in log
    assert {path: path.stat().st_mtime_ns for path in source.rglob("*")} == before


@pytest.mark.processes
def test_command_converts_by_hand(digits: dict[str, Path], tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*COMMAND, "convert", "data", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)

    parts = {split: coco(digits["digits-seg"], split, with_polygon) for split in SPLITS}
    official(tmp_path / "source", digits["digits-seg"], parts)
    done = run("source", "new/signs", "--task", "segment")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "new" / "signs" / "data.yaml")
    assert "40/40" in done.stderr
    check_equal(rows(tmp_path / "new" / "signs", "val"), rows(digits["digits-seg"], "val"))
    assert not any(path.is_symlink() for path in (tmp_path / "new").rglob("*"))
    (tmp_path / "linked").symlink_to(tmp_path / "source")
    for arguments, message in (
        (("source", "new/signs"), "DST: new/signs: exists; name a new folder"),
        (("source", "source/in"), "DST: source/in: is inside of SRC"),
        (("missing", "other"), "SRC: missing: there is no such folder"),
        (("new", "other"), "has no annotations in COCO's JSON format or Pascal VOC's XML format"),
        (("source", "other", "--task", "classify"), "--task: classify: annotations describe labels for detect, "),
        (("linked", "linked/in"), "DST: linked/in: is inside of SRC"),
    ):
        refused = run(*arguments)
        assert refused.returncode == 2
        assert message in refused.stderr
        assert not (tmp_path / "other").exists()
        assert not list(tmp_path.glob(".*"))
