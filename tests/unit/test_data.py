"""Data sets as people have them: with images that are broken, alone, or without labels. Each is handled, or named."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from support.processes import Gang
from yolojob_trainer.data import image_cache

from yolojob.api.constants import ExitCode
from yolojob.api.trainer_report import Report, TrainerState


def data_set(folder: Path, train: int, val: int = 2, *, suffix: str = ".jpg") -> Path:
    """A data set of random images with one box each, of two classes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for i in range(count):
            cv2.imwrite(str(folder / "images" / split / f"{i}{suffix}"), rng.integers(0, 255, (80, 100, 3), np.uint8))
            (folder / "labels" / split / f"{i}.txt").write_text(f"{i % 2} 0.5 0.5 0.4 0.4\n")
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [a, b]\n")
    return folder


def train(gangs: Any, folder: Path, world_size: int = 1, **spec: Any) -> tuple[int, Report, Gang]:
    settings = {"fraction": None, "epochs": 1, "mosaic": 0.5, **spec.pop("train", {})}
    gang = gangs(world_size, replicas=world_size, dataset={"uri": f"file://{folder}"}, train=settings, **spec)
    codes = gang.wait()
    return codes[0], gang.report(), gang


def images_trained(gang: Gang) -> list[str]:
    return sorted(name for _, _, names in gang.samples() for name in names)


def test_images_without_labels_and_a_last_batch_of_one(gangs: Any, tmp_path: Path) -> None:
    """Nine images in batches of eight; one has an empty label file, one has none."""
    folder = data_set(tmp_path / "set", 9)
    (folder / "labels" / "train" / "3.txt").write_text("")
    (folder / "labels" / "train" / "4.txt").unlink()
    code, report, gang = train(gangs, folder)
    assert code == 0, gang.log()
    assert images_trained(gang) == [f"{i}.jpg" for i in range(9)]
    assert report.progress.steps == 2
    assert report.warnings == []


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_data_set_with_one_image(gangs: Any, tmp_path: Path, world_size: int) -> None:
    """With two ranks one has nothing to train, and one nothing to validate."""
    code, report, gang = train(gangs, data_set(tmp_path / "set", 1, 1), world_size, train={"epochs": 2})
    assert code == 0, gang.log()
    assert report.state == TrainerState.SUCCEEDED
    assert report.progress.epoch == 2
    assert report.result is not None
    assert report.result.map50 is not None


def test_corrupt_images_are_left_out_and_named(gangs: Any, tmp_path: Path) -> None:
    folder = data_set(tmp_path / "set", 10)
    images = folder / "images" / "train"
    (images / "2.jpg").write_bytes(b"no image at all")
    half = (images / "5.jpg").read_bytes()
    (images / "5.jpg").write_bytes(half[: len(half) // 2])
    (images / "7.jpg").write_bytes((images / "7.jpg").read_bytes() + b"\0\0trailing")
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    code, report, gang = train(gangs, folder)
    assert code == 0, gang.log()
    assert images_trained(gang) == [f"{i}.jpg" for i in range(10) if i not in (2, 5)]
    assert len(report.warnings) == 1
    assert "2 image(s) cannot be used" in report.warnings[0]
    assert "2.jpg" in report.warnings[0]
    assert "5.jpg" in report.warnings[0]
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before, "a data set is not written to"


def test_only_corrupt_images_are_bad_input(gangs: Any, tmp_path: Path) -> None:
    folder = data_set(tmp_path / "set", 2)
    for path in (folder / "images" / "train").iterdir():
        path.write_bytes(b"no image")
    code, report, _ = train(gangs, folder)
    assert code == ExitCode.BAD_INPUT
    assert report.failure is not None
    assert "No valid images found" in report.failure.message
    assert "cannot identify image file" in report.failure.message


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("7 0.5 0.5 0.4 0.4", "Label class 7 exceeds dataset class count 2"),
        ("-1 0.5 0.5 0.4 0.4", "negative label values"),
        ("0 0.5 0.5 3 0.4", "out of bounds coordinates"),
        ("0 0.5 0.5 0.4", "labels require 5 columns"),
        ("cat 0.5 0.5 0.4 0.4", "could not convert string"),
    ],
)
def test_labels_that_cannot_be_are_named(gangs: Any, tmp_path: Path, label: str, words: str) -> None:
    """A class that there is not is the user's mistake and refused; other nonsense costs the image."""
    folder = data_set(tmp_path / "set", 8)
    (folder / "labels" / "train" / "6.txt").write_text(label)
    code, report, gang = train(gangs, folder)
    if "class" in words:
        assert code == ExitCode.BAD_INPUT
        assert report.failure is not None
        assert report.failure.reason == "InvalidDataset"
        assert words in report.failure.message
        assert "train/6.jpg" in report.failure.message
    else:
        assert code == 0, gang.log()
        assert "6.jpg" in report.warnings[0]
        assert words in report.warnings[0]
        assert "6.jpg" not in images_trained(gang)


def test_a_list_that_leads_out_of_the_data_set_is_refused(gangs: Any, tmp_path: Path) -> None:
    folder = data_set(tmp_path / "set", 2)
    (folder / "train.txt").write_text("./images/train/0.jpg\n../../etc/secret.jpg\n")
    (folder / "data.yaml").write_text("train: train.txt\nval: images/val\nnames: [a, b]\n")
    code, report, _ = train(gangs, folder)
    assert code == ExitCode.BAD_INPUT
    assert report.failure is not None
    assert "../../etc/secret.jpg leads out of the data set" in report.failure.message
    (folder / "train.txt").write_text("./images/train/0.jpg\n")
    code, _, gang = train(gangs, folder)
    assert code == 0, gang.log()
    assert images_trained(gang) == ["0.jpg"]


def test_a_download_script_is_never_run(gangs: Any, tmp_path: Path) -> None:
    folder = data_set(tmp_path / "set", 2)
    shutil.rmtree(folder / "images" / "val")
    with (folder / "data.yaml").open("a") as file:
        file.write(f"download: |\n  open({str(tmp_path / 'ran')!r}, 'w')\n")
    code, report, _ = train(gangs, folder)
    assert code == ExitCode.BAD_INPUT
    assert report.failure is not None
    assert "val: images/val: there is no" in report.failure.message
    assert not (tmp_path / "ran").exists()


def test_images_in_shared_memory_train_the_same(gangs: Any, tmp_path: Path) -> None:
    """Two ranks: with `cache: ram` every sample has the very pixels that it has without, and nothing stays behind."""
    folder = data_set(tmp_path / "set", 16)
    records = {}
    for cached in (False, "ram"):
        code, report, gang = train(gangs, folder, 2, train={"epochs": 2, "cache": cached, "mosaic": 1.0})
        assert code == 0, gang.log()
        assert report.warnings == []
        records[cached] = [(gang.record.parent / f"record.{rank}").read_text() for rank in range(2)]
        for rank in range(2):
            (gang.record.parent / f"record.{rank}").unlink()
        shutil.rmtree(tmp_path / "out")
    assert records["ram"] == records[False]
    assert not list(Path("/dev/shm").glob(f"yolojob-{os.getuid()}-*"))


def test_images_are_decoded_once_per_node_and_survive_their_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(image_cache, "MEMORY", tmp_path)
    pixels = [np.full((3 + i, 4, 3), i, np.uint8) for i in range(5)]
    calls: list[int] = []

    def load(i: int) -> image_cache.Loaded:
        calls.append(i)
        return pixels[i], (30 + i, 40), pixels[i].shape[:2]

    first, second = (image_cache.share("key", 5, load) for _ in range(2))
    assert sorted(calls) == [0, 1, 2, 3, 4]
    first.unlink()
    assert list(tmp_path.iterdir()) == []
    for i, expected in enumerate(pixels):
        assert (first[i] == expected).all()
        assert (second[i] == expected).all()
        assert first.originals[i] == (30 + i, 40)
    first[0][:] = 9
    assert (second[0] == 0).all(), "what one process does to an image is its own"


def test_images_that_do_not_fit_are_named() -> None:
    assert image_cache.fits(1) is None
    words = image_cache.fits(1 << 60)
    assert words is not None
    assert "spec.workers.sharedMemory" in words
