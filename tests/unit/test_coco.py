"""Annotations in COCO's format: what a conversion writes, leaves out and refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image
from support.annotated_datasets import (
    KEYPOINTS,
    SPLITS,
    Layout,
    below_images,
    check_equal,
    coco,
    convert,
    edit,
    encode,
    official,
    roboflow,
    rows,
    with_box,
    with_keypoints,
    with_polygon,
    write_one,
)
from yolojob_trainer.errors import BadInput

from yolojob.api.task import Task

pytestmark = pytest.mark.torch


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
