"""`yolojob check`: findings about odd datasets, continued checks, and the page."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.cli import QUICK, call, manifest, small
from yolojob_trainer.check import dataset_check, image_facts
from yolojob_trainer.check.image_facts import FactsFile, ImageFacts
from yolojob_trainer.data import builtin_digits
from yolojob_trainer.data.dataset_description import DatasetDescription, Split
from yolojob_trainer.data.dataset_images import image_files

from yolojob.api.dataset_check import DatasetCheck
from yolojob.api.task import Task

pytestmark = pytest.mark.torch


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (96, 64), mode: str = "RGB", **options: Any) -> Path:
    """Write a picture of large patches, which stay the same in another encoding and size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    patches = np.random.default_rng(seed).integers(0, 256, (8, 9, 3), np.uint8)
    Image.fromarray(patches).resize(size, Image.Resampling.NEAREST).convert(mode).save(path, **options)
    return path


def description(root: Path) -> DatasetDescription:
    splits = {name: Split(folders=[root / "images" / name]) for name in ("train", "val")}
    return DatasetDescription(names={0: "a", 1: "b"}, splits=splits, channels=3, settings={})


def check(root: Path, cache: Path, task: Task = Task.DETECT) -> DatasetCheck:
    return dataset_check.check(description(root), task, 64, cache, lambda *_: None)


def test_files_are_described_and_problems_are_found(tmp_path: Path) -> None:
    train, val = tmp_path / "images" / "train", tmp_path / "images" / "val"
    first = picture(train / "a.png")
    (train / "copy.png").write_bytes(first.read_bytes())
    picture(train / "gray.png", 1, mode="L")
    picture(train / "wide.png", 2, size=(300, 40))
    (val / "a.png").parent.mkdir(parents=True)
    (val / "a.png").write_bytes(first.read_bytes())
    picture(val / "re-encoded.jpg", 2, size=(300, 40), quality=95)
    picture(val / "smaller.png", 1, size=(72, 48), mode="L")
    picture(train / "cut.jpg", 3).write_bytes(picture(train / "cut.jpg", 3).read_bytes()[:-200])
    (train / "text.png").write_text("no image")
    (train / "empty.jpg").touch()
    labels = tmp_path / "labels" / "train"
    labels.mkdir(parents=True)
    (labels / "a.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (labels / "gone.txt").write_text("0 0.5 0.5 0.1 0.1\n")

    result = check(tmp_path, tmp_path / "cache")
    found = result.splits["train"]
    assert (found.images, found.broken_count, found.duplicate_count, found.orphan_count) == (7, 3, 1, 1)
    assert {Path(problem.file).name for problem in found.broken} == {"cut.jpg", "text.png", "empty.jpg"}
    assert found.duplicates == [[str(first), str(train / "copy.png")]]
    assert found.orphans == [str(labels / "gone.txt")]
    assert found.modes == {"RGB": 3, "L": 1}
    assert found.ratios[-1] == 1
    assert sum(found.ratios) == 4
    assert result.leak_count == 3
    assert [leak.same_bytes for leak in result.leaks] == [True, False, False]
    assert {Path(leak.files[1]).name for leak in result.leaks} == {"a.png", "re-encoded.jpg", "smaller.png"}
    assert result.decode_seconds is not None
    assert result.decode_seconds > 0


def test_validation_with_the_images_of_the_training_is_found(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "train" / "a.png")
    folder = Split(folders=[tmp_path / "images" / "train"])
    both = DatasetDescription(names={0: "a"}, splits={"train": folder, "val": folder}, channels=3, settings={})
    result = dataset_check.check(both, Task.DETECT, 64, tmp_path / "cache", lambda *_: None)
    assert result.leak_count == 1


def test_pictures_of_one_colour_do_not_look_the_same(tmp_path: Path) -> None:
    for split, colour in (("train", 10), ("val", 200)):
        path = tmp_path / "images" / split / "flat.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (40, 40), (colour,) * 3).save(path)
    assert check(tmp_path, tmp_path / "cache").leak_count == 0


def test_check_continues_where_it_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [picture(tmp_path / f"{number}.png", number) for number in range(6)]
    file = tmp_path / "facts.jsonl"
    monkeypatch.setattr(image_facts, "BATCH", 2)
    read: list[Path] = []
    original = image_facts.read

    def recorded(path: Path) -> ImageFacts:
        if len(read) == 4:
            raise KeyboardInterrupt
        read.append(path)
        return original(path)

    monkeypatch.setattr(image_facts, "read", recorded)
    with pytest.raises(KeyboardInterrupt):
        image_facts.read_all(paths, FactsFile(file), 1, lambda *_: None)
    with file.open("a") as text:
        text.write('["half a li')  # of a process that was killed while it was writing
    read[:] = []
    steps: list[tuple[int, int]] = []
    facts = image_facts.read_all(paths, FactsFile(file), 1, lambda done, total: steps.append((done, total)))
    assert read == paths[4:]
    assert list(facts) == paths
    total = sum(path.stat().st_size for path in paths)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert steps[-1] == (total, total)
    assert {path: original(path).content for path in paths} == {path: found.content for path, found in facts.items()}

    picture(paths[0], 77)
    read[:] = []
    assert (
        image_facts.read_all(paths, FactsFile(file), 1, lambda *_: None)[paths[0]].content == original(paths[0]).content
    )
    assert read == [paths[0]]


def test_image_of_too_many_pixels_is_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(path)
    assert "pixels" in (image_facts.read(path).problem or "")


@pytest.mark.parametrize(
    "line",
    [
        '["a.png", {"size": 1}]',
        '["a.png", {"size": 1, "changed": 2, "width": 5, "height": 0}]',
        '["a.png", {"size": 1, "changed": 2, "width": "5", "height": 5}]',
        '["a.png", {"size": 1, "changed": 2, "width": 5, "height": 5, "mode": []}]',
        f'["a.png", {{"size": 1, "changed": 2, "width": {10**400}, "height": 5}}]',
        "[" * 100_000,
        "[]",
        "7",
    ],
)
def test_line_of_results_that_is_not_valid_is_ignored(tmp_path: Path, line: str) -> None:
    path = picture(tmp_path / "a.png")
    file = tmp_path / "facts.jsonl"
    file.write_text(line.replace("a.png", str(path)) + "\n")
    assert FactsFile(file).get(path) is None
    facts = image_facts.read_all([path], FactsFile(file), 1, lambda *_: None)
    assert FactsFile(file).get(path) == facts[path]


def test_images_are_those_that_upstream_finds(tmp_path: Path) -> None:
    picture(tmp_path / "elsewhere" / "linked.png")
    folder = tmp_path / "images [1]"
    picture(folder / "a" / "deep.png", 1)
    picture(folder / "._mac.jpg", 2)
    (folder / "part").symlink_to(tmp_path / "elsewhere")
    found = sorted(image_files(Split(folders=[folder], images=[folder / "listed.PNG"])))
    assert [path.name for path in found] == ["deep.png", "listed.PNG", "linked.png"]


def test_lists_over_one_folder_leave_no_orphans(tmp_path: Path) -> None:
    images, labels = tmp_path / "images", tmp_path / "labels"
    paths = [picture(images / f"{number}.png", number) for number in range(4)]
    labels.mkdir()
    for name in ("0", "1", "2", "3", "classes", "gone"):
        (labels / f"{name}.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    splits = {"train": Split(images=paths[:3]), "val": Split(images=paths[3:])}
    both = DatasetDescription(names={0: "a"}, splits=splits, channels=3, settings={})
    found = dataset_check.check(both, Task.DETECT, 64, tmp_path / "cache", lambda *_: None)
    assert [split.orphans for split in found.splits.values()] == [[str(labels / "gone.txt")], []]


def test_picture_in_two_forms_is_one_leak(tmp_path: Path) -> None:
    first = picture(tmp_path / "images" / "train" / "a.png")
    picture(tmp_path / "images" / "train" / "a2.jpg", quality=95)
    (tmp_path / "images" / "val").mkdir()
    (tmp_path / "images" / "val" / "b.png").write_bytes(first.read_bytes())
    (leak,) = check(tmp_path, tmp_path / "cache").leaks
    assert leak.same_bytes


def test_picture_that_exif_turns_has_the_sides_and_the_look_of_its_copy(tmp_path: Path) -> None:
    path = picture(tmp_path / "images" / "train" / "a.png", size=(96, 64))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = tmp_path / "images" / "val" / "turned.jpg"
    turned.parent.mkdir()
    Image.open(path).transpose(Image.Transpose.ROTATE_90).save(turned, exif=exif, quality=95)
    assert (image_facts.read(turned).width, image_facts.read(turned).height) == (96, 64)
    assert check(tmp_path, tmp_path / "cache").leak_count == 1


def test_name_of_any_bytes_can_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "images" / "train"
    folder.mkdir(parents=True)
    (folder / os.fsdecode(b"\xff[b].jpg")).write_bytes(b"x")
    found = check(tmp_path, tmp_path / "cache")
    assert "\\xff[b].jpg" in found.model_dump_json().replace("\\\\", "\\")


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_postscript_is_not_given_to_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", refuse)
    path = tmp_path / name
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n{} loop\n%%EOF\n")
    assert "cannot identify image file" in (image_facts.read(path).problem or "")


def test_pictures_that_only_get_darker_do_not_look_the_same(tmp_path: Path) -> None:
    for split, power in (("train", 1), ("val", 2)):
        path = tmp_path / "images" / split / "a.png"
        path.parent.mkdir(parents=True)
        ramp = np.linspace(1, 0, 90) ** power * 255
        Image.fromarray(np.tile(ramp, (40, 1)).astype(np.uint8)).save(path)
    assert check(tmp_path, tmp_path / "cache").leak_count == 0


def test_results_are_not_written_through_a_link(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    secret = tmp_path / "secret"
    secret.write_text("x")
    file = tmp_path / "facts.jsonl"
    file.symlink_to(secret)
    with pytest.raises(OSError, match="symbolic links"):
        image_facts.read_all([path], FactsFile(file), 1, lambda *_: None)
    assert secret.read_text() == "x"


def test_label_whose_image_is_in_no_split_is_no_orphan(tmp_path: Path) -> None:
    images, labels = tmp_path / "images", tmp_path / "labels"
    paths = [picture(images / f"{name}.png", number) for number, name in enumerate("abc")]
    labels.mkdir()
    for name in "abcd":
        (labels / f"{name}.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    splits = {"train": Split(images=paths[:1]), "val": Split(images=paths[1:2])}
    found = DatasetDescription(names={0: "a"}, splits=splits, channels=3, settings={})
    result = dataset_check.check(found, Task.DETECT, 64, tmp_path / "cache", lambda *_: None)
    assert result.splits["train"].orphans == [str(labels / "d.txt")]


@pytest.mark.processes
def test_command_checks_a_dataset_and_writes_a_page(tmp_path: Path, cache: Path) -> None:
    root = tmp_path / "volumes" / "claim"
    builtin_digits.WRITERS["digits"](root)
    train = root / "images" / "train"
    (root / "labels" / "train" / "00001.txt").unlink()
    (train / "00002.png").write_bytes((train / "00002.png").read_bytes()[:100])
    (root / "images" / "val" / "00003.png").write_bytes((train / "00003.png").read_bytes())
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    file = manifest(tmp_path, small(dataset={"uri": "pvc://claim"}, workers={"replicas": 2}))

    done = call(tmp_path, cache, "check", file, "--page", "out/check.html", "--output", "json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    train_split = found["splits"]["train"]
    expected = sum(len(path.read_text().splitlines()) for path in (root / "labels" / "train").glob("*.txt"))
    lost = len((root / "labels" / "train" / "00002.txt").read_text().splitlines())
    assert (train_split["images"], train_split["brokenCount"], train_split["withoutLabel"]) == (400, 1, 1)
    assert train_split["objects"] == expected - lost == sum(train_split["classes"].values())
    assert sum(train_split["boxSizes"]) == train_split["objects"]
    assert found["leakCount"] == 1
    assert found["sampleSeconds"] > 0
    assert found["decodeSeconds"] > 0
    messages = [finding["message"] for finding in found["findings"]]
    assert any("1 picture(s) are in more than one split" in message for message in messages)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    page = (tmp_path / "out" / "check.html").read_text()
    assert "data:image/jpeg;base64," in page
    assert "1 image(s) have no label file" in page

    for settings, count in (({"single_cls": True}, 1), ({"classes": [3, 5]}, 2)):
        document = small(dataset={"uri": "pvc://claim"}, train={**QUICK, **settings})
        done = call(tmp_path, cache, "check", manifest(tmp_path, document), "--output", "json")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert not any("do not occur" in finding["message"] for finding in found["findings"])
        assert len(found["splits"]["train"]["classes"]) == count

    for number in range(60):
        (train / f"broken-{number}-[b].png").write_bytes(b"x")
    done = call(tmp_path, cache, "check", file)
    assert done.returncode == 0, done.stderr
    assert "train: 61 of 460 image(s) are left out, such as " in done.stdout

    (root / "labels" / "train" / "00005.txt").write_text("12 0.5 0.5 0.1 0.1\n")
    done = call(tmp_path, cache, "check", file)
    assert done.returncode == 2
    assert "error: spec.dataset: train: 1 images: " in done.stdout
    assert "names in the data file must list all classes" in done.stdout
    assert "Written to check.html" in done.stdout


@pytest.mark.processes
@pytest.mark.parametrize("name", ["digits-cls", "digits-sem"])
def test_command_checks_tasks_without_objects(tmp_path: Path, cache: Path, name: str) -> None:
    model = {"digits-cls": "yolo11n-cls.yaml", "digits-sem": "yolo26n-sem.yaml"}[name]
    file = manifest(tmp_path, small(dataset={"uri": f"builtin://{name}"}, model={"name": model}))
    done = call(tmp_path, cache, "check", file)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "images per second and core" in done.stdout
    assert "data:image/jpeg;base64," in (tmp_path / "check.html").read_text()
