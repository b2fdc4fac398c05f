"""Conversions: names, splits and keys of converted datasets, a training on one, and the command."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.annotated_datasets import (
    SPLITS,
    check_equal,
    coco,
    convert,
    edit,
    fingerprint,
    official,
    place_images,
    roboflow,
    rows,
    with_box,
    with_polygon,
    write_one,
)
from support.cli import COMMAND, call, manifest, small
from ultralytics.data.utils import img2label_paths
from yolojob_trainer.data.formats import conversion
from yolojob_trainer.data.formats.annotation import ImageFinder, split_of
from yolojob_trainer.data.job_dataset import NodeFolders, open_dataset
from yolojob_trainer.errors import BadInput

from yolojob.api.spec import YoloTrainingJobSpec
from yolojob.api.task import Task

pytestmark = pytest.mark.torch


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
        (tmp_path / needed).mkdir()
        settings = conversion.ConversionSettings(
            task=Task.DETECT, place=conversion.link, count=lambda *_: None, needed=needed
        )
        assert set(conversion.write(annotations, tmp_path / needed, finder, settings).images) == splits


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
