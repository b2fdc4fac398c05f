"""The datasets of all tasks: the same labels and samples as Ultralytics' own datasets, for the same random numbers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from support.recipes import seed
from ultralytics.cfg import get_cfg
from ultralytics.data.build import build_yolo_dataset
from ultralytics.data.dataset import ClassificationDataset
from ultralytics.data.utils import check_det_dataset
from yolojob_trainer.data import builtin_digits, dataset_config
from yolojob_trainer.data.dataset_description import DatasetDescription
from yolojob_trainer.errors import BadInput
from yolojob_trainer.tasks.vision_task import VISION_TASKS

from yolojob.api.task import SUFFIXES, Task

pytestmark = pytest.mark.torch

IMGSZ, SAMPLES = 96, 12
MAPPED = (Task.SEGMENT, Task.POSE, Task.OBB, Task.SEMANTIC, Task.DEPTH)
"""Tasks with a label file for each image."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[Task, Path]:
    """The first images of the built-in dataset of each task."""
    folder = tmp_path_factory.mktemp("digits")
    scenes, glyphs = dict(builtin_digits.SCENES), dict(builtin_digits.GLYPHS)
    builtin_digits.SCENES.update(train=SAMPLES, val=SAMPLES)
    builtin_digits.GLYPHS.update(train=range(40), val=range(1437, 1477))
    try:
        for suffix, task in SUFFIXES.items():
            builtin_digits.WRITERS[f"digits{suffix}"](folder / task)
    finally:
        builtin_digits.SCENES.update(scenes)
        builtin_digits.GLYPHS.update(glyphs)
    return {task: folder / task for task in SUFFIXES.values()}


def both(
    folder: Path, task: Task, cache: Path, mode: str, config: str = "data.yaml", **settings: Any
) -> tuple[Any, Any]:
    """Returns (upstream's dataset, ours) of the same settings."""
    args = get_cfg(overrides={"imgsz": IMGSZ, "task": task.value, **settings})
    data = check_det_dataset(str(dataset_config.describe(folder, config, task=task).write(cache / "data")))
    upstream = build_yolo_dataset(args, data[mode], 4, data, mode=mode, rect=mode == "val", stride=32)
    ours = VISION_TASKS[task].dataset(
        label_folder=cache,
        boundary=folder.resolve(),
        img_path=data[mode],
        imgsz=IMGSZ,
        batch_size=4,
        augment=mode == "train",
        hyp=get_cfg(overrides={"imgsz": IMGSZ, "task": task.value, **settings}),
        rect=mode == "val",
        stride=32,
        pad=0.0 if mode == "train" else 0.5,
        prefix=f"{mode}: ",
        task=task.value,
        data=data,
    )
    return upstream, ours


def assert_equal_samples(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(other[key], value, rtol=0, atol=0, msg=key)
        elif not isinstance(value, np.ndarray):
            assert other[key] == value, key


@pytest.mark.parametrize("task", MAPPED)
def test_validation_samples_equal_those_of_upstream(folders: dict[Task, Path], tmp_path: Path, task: Task) -> None:
    upstream, ours = both(folders[task], task, tmp_path, "val")
    assert len(ours) == len(upstream) == SAMPLES
    for i in range(SAMPLES):
        assert_equal_samples(upstream[i], ours[i])


@pytest.mark.parametrize("settings", [{"mosaic": 0.0}, {"mosaic": 1.0, "degrees": 20.0, "flipud": 0.5}], ids=str)
@pytest.mark.parametrize("task", MAPPED)
def test_training_samples_equal_those_of_upstream(
    folders: dict[Task, Path], tmp_path: Path, task: Task, settings: dict[str, Any]
) -> None:
    """With the same images to choose from for mosaics; upstream takes them from its buffer."""
    upstream, ours = both(folders[task], task, tmp_path, "train", **settings)
    upstream.max_buffer_length = 1000
    for i in range(SAMPLES):
        upstream.load_image(i)  # an image that is in memory is not added to the buffer
    for i in range(SAMPLES):
        samples = []
        for built in (upstream, ours):
            built.buffer = list(range(SAMPLES))
            seed(i)
            samples.append(built[i])
        assert_equal_samples(*samples)


@pytest.mark.parametrize("task", [Task.SEGMENT, Task.POSE, Task.OBB])
def test_samples_of_tasks_with_objects_are_drawn_as_recipes(
    folders: dict[Task, Path], tmp_path: Path, task: Task
) -> None:
    """So that their pixels are made in one step, and on a GPU."""
    _, ours = both(folders[task], task, tmp_path, "train")
    assert ours.not_recorded is None


@pytest.mark.parametrize("task", [Task.SEMANTIC, Task.DEPTH])
def test_images_without_a_label_are_left_out_by_name(folders: dict[Task, Path], tmp_path: Path, task: Task) -> None:
    folder = tmp_path / "set"
    for path in folders[task].rglob("*.*"):
        target = folder / path.relative_to(folders[task])
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    kind = "masks" if task is Task.SEMANTIC else "depth"
    (folder / kind / "train" / "00003.png").unlink()
    (folder / kind / "train" / "00005.png").write_bytes(b"no image")
    upstream, ours = both(folder, task, tmp_path / "cache", "train")
    assert len(ours) == len(upstream) == SAMPLES - 2
    assert [Path(message.partition(": ignoring")[0]).name for message in ours.left_out] == ["00003.png", "00005.png"]
    assert ours.warnings() == []


def test_semantic_segmentation_without_masks_draws_them_from_polygons(
    folders: dict[Task, Path], tmp_path: Path
) -> None:
    from ultralytics.data.utils import add_polygon_background

    upstream, ours = both(folders[Task.SEGMENT], Task.SEMANTIC, tmp_path, "val")
    assert type(ours).__name__ == "PolygonMaskImages"
    add_polygon_background(ours.data)
    assert ours.data["names"][10] == "background"
    masks = [ours[i]["semantic_mask"] for i in range(SAMPLES)]
    assert_equal_samples(upstream[3], ours[3])
    assert {int(value) for mask in masks for value in mask.unique()} <= {*range(11), 255}
    assert any(int(mask.min()) < 10 for mask in masks)


def folders_of_classes(folder: Path, task_folder: Path, augment: bool, **settings: Any) -> tuple[Any, Any]:
    """Returns (upstream's dataset, ours) of a split of a classification."""
    args = get_cfg(overrides={"imgsz": 32, "task": "classify", **settings})
    names = {i: str(i) for i in range(10)}
    split = "train" if augment else "val"
    upstream = ClassificationDataset(str(task_folder / split), args, augment=augment, prefix=split, names=names)
    ours = VISION_TASKS[Task.CLASSIFY].dataset(
        label_folder=folder,
        boundary=task_folder.resolve(),
        img_path=[str(task_folder / split)],
        imgsz=32,
        augment=augment,
        hyp=args,
        prefix=f"{split}: ",
        data={"names": names},
    )
    return upstream, ours


@pytest.mark.parametrize("augment", [False, True])
def test_samples_of_a_classification_equal_those_of_upstream(
    folders: dict[Task, Path], tmp_path: Path, augment: bool
) -> None:
    upstream, ours = folders_of_classes(tmp_path, folders[Task.CLASSIFY], augment)
    assert len(ours) == len(upstream) == 40
    for i in range(40):
        seed(i)
        torch.manual_seed(random.getrandbits(63))
        expected = upstream[i]
        seed(i)
        state = torch.get_rng_state()
        sample = ours[i]
        assert torch.equal(torch.get_rng_state(), state), "the training's own random numbers stay as they are"
        torch.testing.assert_close(sample["img"], expected["img"], rtol=0, atol=0)
        assert sample["cls"] == expected["cls"]
    assert not list(folders[Task.CLASSIFY].rglob("*.cache")), "nothing is written into the dataset"


def test_classification_in_memory_has_the_same_samples(folders: dict[Task, Path], tmp_path: Path) -> None:
    _, ours = folders_of_classes(tmp_path, folders[Task.CLASSIFY], False)
    before = [ours[i]["img"] for i in range(5)]
    assert ours.why_not_in_memory() is None
    ours.keep_in_memory(True)
    assert ours.in_memory
    for i, expected in enumerate(before):
        assert torch.equal(ours[i]["img"], expected)


def test_corrupt_image_of_a_classification_is_left_out_by_name(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            cv2.imwrite(str(tmp_path / "set" / split / name / "1.png"), np.zeros((40, 40, 3), np.uint8))
    (tmp_path / "set" / "train" / "a" / "2.png").write_bytes(b"no image")
    _, ours = folders_of_classes(tmp_path, tmp_path / "set", True)
    assert len(ours) == 2
    assert len(ours.left_out) == 1
    assert "train/a/2.png" in ours.left_out[0]


def classes(folder: Path, split: str = "val", boundary: Path | None = None) -> DatasetDescription:
    return dataset_config.describe(folder, "data.yaml", split, boundary, Task.CLASSIFY)


@pytest.mark.parametrize("validation", ["val", "valid", "validation", "test"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_folders_of_a_classification_are_found_as_exporters_name_them(
    tmp_path: Path, validation: str, wrapped: bool
) -> None:
    root = tmp_path / "export" if wrapped else tmp_path
    for split in ("train", validation):
        for name in ("dog", "cat"):
            (root / split / name).mkdir(parents=True)
    description = classes(tmp_path)
    assert description.names == {0: "cat", 1: "dog"}
    assert description.splits["val"].folders == [root / validation]


def test_incomplete_folders_of_a_classification_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no folder named train"):
        classes(tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(BadInput, match="no folder for the validation: expected val or valid or validation or test"):
        classes(tmp_path)
    (tmp_path / "val").mkdir()
    with pytest.raises(BadInput, match="has 0 folders"):
        classes(tmp_path)
    (tmp_path / "train" / "a\nb").mkdir()
    with pytest.raises(BadInput, match=r"'a\\nb' is no name for a class"):
        classes(tmp_path)


def test_link_of_a_classification_out_of_the_volume_is_refused(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside" / "a", tmp_path / "set"
    outside.mkdir(parents=True)
    cv2.imwrite(str(outside / "1.png"), np.zeros((40, 40, 3), np.uint8))
    (folder / "val" / "a").mkdir(parents=True)
    (folder / "train").symlink_to(outside.parent)
    with pytest.raises(BadInput, match="link out of the volume"):
        classes(folder, boundary=folder)
    (folder / "train").unlink()
    (folder / "train").mkdir()
    (folder / "train" / "a").symlink_to(outside)
    with pytest.raises(ValueError, match="outside of the volume"):
        folders_of_classes(tmp_path, folder, True)


@pytest.mark.parametrize(
    ("task", "content", "message"),
    [
        (Task.POSE, {}, "kpt_shape: is missing"),
        (Task.POSE, {"kpt_shape": [3, 4]}, r"kpt_shape: \[3, 4\]: must be"),
        (Task.POSE, {"kpt_shape": [2, 2], "flip_idx": [0, 0]}, r"flip_idx: \[0, 0\]: must name each key point"),
        (Task.POSE, {"kpt_shape": [2, 2], "flip_idx": "10"}, "flip_idx: '10': must name"),
        (Task.POSE, {"kpt_shape": [2, 2], "kpt_oks_sigmas": [1, 0]}, "must be 2 positive numbers"),
        (Task.POSE, {"kpt_shape": [2, 2], "kpt_names": {0: ["a"]}}, "must have a list of 2 names"),
        (Task.POSE, {"kpt_shape": [2, 2], "kpt_names": 3}, "must have a list of 2 names"),
        (Task.SEMANTIC, {"masks_dir": "../x"}, "masks_dir: '../x': must be the name of the folder"),
        (Task.SEMANTIC, {"masks_dir": 3}, "masks_dir: 3: must be"),
        (Task.SEMANTIC, {"masks_dir": "m", "label_mapping": [1]}, r"label_mapping: \[1\]: must map"),
        (Task.SEMANTIC, {"masks_dir": "m", "label_mapping": {0: 256}}, "must map integers to class ids"),
        (Task.SEMANTIC, {"masks_dir": "m", "label_mapping": {"x": 1}}, "must map integers to class ids"),
        (Task.SEMANTIC, {"names": [str(i) for i in range(255)]}, "a mask has at most 254"),
        (Task.POSE, {"kpt_shape": [2, 2], "kpt_oks_sigmas": [1, 10**400]}, "must be 2 positive numbers"),
        (Task.DEPTH, {"max_depth": 10**400}, "max_depth: .*must be a positive number"),
        (Task.DEPTH, {"depth_scale": 0}, "depth_scale: 0: must be a positive number"),
        (Task.DEPTH, {"max_depth": float("nan")}, "max_depth: nan: must be a positive number"),
        (Task.DEPTH, {"max_depth": True}, "max_depth: True: must be a positive number"),
    ],
)
def test_settings_of_a_task_in_the_data_file_are_checked(
    tmp_path: Path, task: Task, content: dict[str, Any], message: str
) -> None:
    import yaml

    (tmp_path / "images").mkdir()
    document = {"train": "images", "val": "images", "names": ["a", "b"], **content}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(BadInput, match=message):
        dataset_config.describe(tmp_path, "data.yaml", task=task)


def test_yaml_that_names_a_value_many_times_is_refused_with_a_short_message(tmp_path: Path) -> None:
    """A thousand bytes would otherwise become a text of gigabytes."""
    (tmp_path / "images").mkdir()
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    for content in ("names: [*a11]", "names: [a]\nmasks_dir: *a11", "names: [a]\nkpt_shape: *a11"):
        text = "\n".join([*lines, "train: images", "val: images", content])
        (tmp_path / "data.yaml").write_text(text)
        task = Task.SEMANTIC if "masks" in content else Task.POSE
        with pytest.raises(BadInput) as error:
            dataset_config.describe(tmp_path, "data.yaml", task=task)
        assert len(str(error.value)) < 1000


def test_keypoint_settings_do_not_matter_for_a_detection(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    text = "train: images\nval: images\nnames: [a]\nkpt_shape: [2, 3]\nflip_idx: [0, 0]\nkpt_names: [x, y]\n"
    (tmp_path / "data.yaml").write_text(text)
    assert dataset_config.describe(tmp_path, "data.yaml").settings == {"kpt_shape": [2, 3]}


def test_folder_of_masks_is_found_without_a_setting(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "cityscapes8.yaml").write_text("train: images\nval: images\nnames: [a, b]\n")
    description = dataset_config.describe(tmp_path, "cityscapes8.yaml", task=Task.SEMANTIC)
    assert description.settings == {"masks_dir": "masks"}
    written = description.write(tmp_path / "scratch")
    assert written.name == "cityscapes8.yaml", "upstream knows the weights of its classes by this name"


def test_map_of_depth_that_takes_too_much_memory_is_refused(
    folders: dict[Task, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from yolojob_trainer.data import pixel_labels

    monkeypatch.setattr(pixel_labels, "MAX_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"png has 16384 pixels, more than"):
        both(folders[Task.DEPTH], Task.DEPTH, tmp_path, "train")


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["train/images", "train/labels", "val/images"], "has the folders images, labels, as a dataset for detection"),
        (["train/a", "val/a", ".ndjson.yaml/x"], "NDJSON format are not supported"),
        (["x/train/a", "x/val/a", "y/train/a"], "several folders named train"),
    ],
)
def test_folders_that_are_no_classification_are_refused(tmp_path: Path, paths: list[str], message: str) -> None:
    for path in paths:
        (tmp_path / path).mkdir(parents=True)
    with pytest.raises(BadInput, match=message):
        classes(tmp_path)


def test_class_named_train_is_no_split(tmp_path: Path) -> None:
    for path in ("cars/train/train", "cars/train/bus", "cars/val/train", "cars/val/bus"):
        (tmp_path / path).mkdir(parents=True)
    assert classes(tmp_path).names == {0: "bus", 1: "train"}


def test_class_without_images_is_named(folders: dict[Task, Path], tmp_path: Path) -> None:
    _, ours = folders_of_classes(tmp_path, folders[Task.CLASSIFY], True)
    assert ours.warnings() == []
    for path in (folders[Task.CLASSIFY] / "train" / "7").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
        path.unlink()
    _, ours = folders_of_classes(tmp_path, folders[Task.CLASSIFY], True)
    assert ours.warnings() == ["1 of 10 classes have no image: 7"]
    for path in tmp_path.glob("*.png"):
        (folders[Task.CLASSIFY] / "train" / "7" / path.name).write_bytes(path.read_bytes())


@pytest.mark.parametrize("task", [Task.DETECT, *SUFFIXES.values()])
def test_first_images_of_a_batch_keep_the_labels_of_the_task(
    folders: dict[Task, Path], tmp_path: Path, task: Task
) -> None:
    """A bench gives a second process a part of a batch; its loss must be computable."""
    from yolojob_trainer.bench.contention import first_images

    if task is Task.CLASSIFY:
        _, ours = folders_of_classes(tmp_path, folders[task], False)
    else:
        folder = folders[Task.SEGMENT if task is Task.DETECT else task]
        _, ours = both(folder, task, tmp_path, "val")
    samples = [ours[i] for i in range(3)]
    for sample in samples:
        sample.pop("im_file")
    whole, part = ours.collate_fn(samples), ours.collate_fn([ours[i] for i in range(2)])
    first = first_images(whole, 2)
    for name, value in first.items():
        torch.testing.assert_close(value, part[name], rtol=0, atol=0, msg=name)
    assert {name for name, value in part.items() if isinstance(value, torch.Tensor)} == first.keys()


def test_torchvision_modules_start_without_the_network(tmp_path: Path) -> None:
    from yolojob_trainer.model.resolve import resolve

    from yolojob.api.spec import ModelRef

    source = resolve(ModelRef(name="yolo11-cls-resnet18.yaml"), volumes=tmp_path, cache=tmp_path)
    assert source.task is Task.CLASSIFY
    modules = [layer for layer in source.description["backbone"] if layer[2] == "TorchVision"]
    assert modules
    assert all(layer[3][2] is None for layer in modules)
