"""Training on datasets with broken, missing or unlabelled images."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from support.processes import Gang, Gangs
from yolojob_trainer.data import image_cache

from yolojob.api.constants import ExitCode
from yolojob.api.trainer_report import Report, TrainerState

pytestmark = pytest.mark.processes


def data_set(folder: Path, train: int, val: int = 2, *, suffix: str = ".jpg") -> Path:
    """A dataset of random images with one box each, in two classes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for i in range(count):
            cv2.imwrite(str(folder / "images" / split / f"{i}{suffix}"), rng.integers(0, 255, (80, 100, 3), np.uint8))
            (folder / "labels" / split / f"{i}.txt").write_text(f"{i % 2} 0.5 0.5 0.4 0.4\n")
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [a, b]\n")
    return folder


def train(gangs: Gangs, folder: Path, world_size: int = 1, **options: Any) -> tuple[int, Report, Gang]:
    """Train for one epoch: (exit code, report, processes)."""
    settings = {"fraction": None, "epochs": 1, "mosaic": 0.5, **options.pop("train", {})}
    gang = gangs(world_size, replicas=world_size, dataset={"uri": f"file://{folder}"}, train=settings, **options)
    codes = gang.wait()
    return codes[0], gang.report(), gang


def images_trained(gang: Gang) -> list[str]:
    return sorted(name for _, _, names in gang.samples() for name in names)


@pytest.fixture
def shared_memory() -> Iterator[Path]:
    """A folder in shared memory that only this test uses."""
    with tempfile.TemporaryDirectory(prefix="yolojob-test-", dir=image_cache.MEMORY) as folder:
        yield Path(folder)


def test_training_without_some_labels_and_with_a_last_batch_of_one_uses_every_image(
    gangs: Gangs, tmp_path: Path
) -> None:
    """Nine images in batches of eight. One label file is empty, one is missing."""
    folder = data_set(tmp_path / "set", 9)
    (folder / "labels" / "train" / "3.txt").write_text("")
    (folder / "labels" / "train" / "4.txt").unlink()
    code, report, gang = train(gangs, folder)
    assert code == 0, gang.log()
    assert images_trained(gang) == [f"{i}.jpg" for i in range(9)]
    assert report.progress.steps == 2
    assert report.warnings == ["train: 1 of 9 images have no label file; they count as images without objects"]


@pytest.mark.parametrize("world_size", [1, 2])
def test_training_on_a_single_image_succeeds(gangs: Gangs, tmp_path: Path, world_size: int) -> None:
    """With two ranks, one rank has nothing to train and one has nothing to validate."""
    code, report, gang = train(gangs, data_set(tmp_path / "set", 1, 1), world_size, train={"epochs": 2})
    assert code == 0, gang.log()
    assert report.state == TrainerState.SUCCEEDED
    assert report.progress.epoch == 2
    assert report.result is not None
    assert report.result.map50 is not None


def test_training_with_corrupt_images_leaves_them_out_and_warns(gangs: Gangs, tmp_path: Path) -> None:
    folder = data_set(tmp_path / "set", 10)
    images = folder / "images" / "train"
    (images / "2.jpg").write_bytes(b"not an image")
    whole = (images / "5.jpg").read_bytes()
    (images / "5.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "7.jpg").write_bytes((images / "7.jpg").read_bytes() + b"\0\0trailing")
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    code, report, gang = train(gangs, folder)
    assert code == 0, gang.log()
    assert images_trained(gang) == [f"{i}.jpg" for i in range(10) if i not in (2, 5)]
    assert len(report.warnings) == 1
    assert "2 image(s) cannot be used" in report.warnings[0]
    assert "2.jpg" in report.warnings[0]
    assert "5.jpg" in report.warnings[0]
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before, "the dataset was written to"


def test_training_with_only_corrupt_images_is_bad_input(gangs: Gangs, tmp_path: Path) -> None:
    folder = data_set(tmp_path / "set", 2)
    for path in (folder / "images" / "train").iterdir():
        path.write_bytes(b"not an image")
    code, report, _ = train(gangs, folder)
    assert code == ExitCode.BAD_INPUT
    assert report.failure is not None
    assert "none of 2 images can be used" in report.failure.message
    assert "cannot identify image file" in report.failure.message


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("7 0.5 0.5 0.4 0.4", "Label class 7 exceeds dataset class count 2"),
        ("-1 0.5 0.5 0.4 0.4", "negative label values"),
        ("0 0.5 0.5 3 0.4", "out of bounds coordinates"),
        ("0 0.5 0.5 0.4", "labels require 5 columns"),
        ("cat 0.5 0.5 0.4 0.4", "could not convert string"),
    ],
)
def test_training_with_an_invalid_label_reports_file_and_fault(
    gangs: Gangs, tmp_path: Path, label: str, message: str
) -> None:
    """An undefined class is the user's mistake and fails the job; any other fault costs only the image."""
    folder = data_set(tmp_path / "set", 8)
    (folder / "labels" / "train" / "6.txt").write_text(label)
    code, report, gang = train(gangs, folder)
    if "class" in message:
        assert code == ExitCode.BAD_INPUT
        assert report.failure is not None
        assert report.failure.reason == "InvalidDataset"
        assert message in report.failure.message
        assert "train/6.jpg" in report.failure.message
    else:
        assert code == 0, gang.log()
        assert "6.jpg" in report.warnings[0]
        assert message in report.warnings[0]
        assert "6.jpg" not in images_trained(gang)


def test_image_list_that_leads_out_of_the_data_set_is_bad_input(gangs: Gangs, tmp_path: Path) -> None:
    folder = data_set(tmp_path / "set", 2)
    (folder / "train.txt").write_text("./images/train/0.jpg\n../../etc/secret.jpg\n")
    (folder / "data.yaml").write_text("train: train.txt\nval: images/val\nnames: [a, b]\n")
    code, report, _ = train(gangs, folder)
    assert code == ExitCode.BAD_INPUT
    assert report.failure is not None
    assert "../../etc/secret.jpg leads out of the dataset" in report.failure.message
    (folder / "train.txt").write_text("./images/train/0.jpg\n")
    code, _, gang = train(gangs, folder)
    assert code == 0, gang.log()
    assert images_trained(gang) == ["0.jpg"]


def test_download_script_of_a_data_set_is_never_run(gangs: Gangs, tmp_path: Path) -> None:
    folder = data_set(tmp_path / "set", 2)
    shutil.rmtree(folder / "images" / "val")
    with (folder / "data.yaml").open("a") as file:
        file.write(f"download: |\n  open({str(tmp_path / 'ran')!r}, 'w')\n")
    code, report, _ = train(gangs, folder)
    assert code == ExitCode.BAD_INPUT
    assert report.failure is not None
    assert f"val: images/val: {folder / 'images' / 'val'} does not exist" in report.failure.message
    assert not (tmp_path / "ran").exists()


def test_training_with_cache_ram_sees_the_same_pixels_and_frees_the_memory(
    gangs: Gangs, tmp_path: Path, shared_memory: Path
) -> None:
    """Two ranks: every sample has exactly the pixels that it has without the cache."""
    folder = data_set(tmp_path / "set", 16)
    environment = {"YOLOJOB_TEST_SHARED_MEMORY": str(shared_memory)}
    records = {}
    for cached in (False, "ram"):
        settings = {"epochs": 2, "cache": cached, "mosaic": 1.0}
        code, report, gang = train(gangs, folder, 2, train=settings, environment=environment)
        assert code == 0, gang.log()
        assert report.warnings == []
        records[cached] = [gang.micro_batches(rank) for rank in range(2)]
        gang.remove_records()
        shutil.rmtree(gang.output)
    assert all(records[False])
    assert records["ram"] == records[False]
    assert list(shared_memory.iterdir()) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_training_with_images_on_the_device_sees_almost_the_same_pixels(
    gangs: Gangs, tmp_path: Path, workers: int
) -> None:
    """A CPU stands for the GPU. Loader processes send recipes."""
    folder = data_set(tmp_path / "set", 16)
    sums = []
    for cached in (False, "gpu"):
        settings = {"epochs": 2, "cache": cached, "mosaic": 1.0, "close_mosaic": 1, "workers": workers}
        code, report, gang = train(
            gangs, folder, train=settings, environment={"YOLOJOB_TEST_DEVICE_CACHE": "1", "YOLOJOB_CPUS": "2"}
        )
        assert code == 0, gang.log()
        assert report.warnings == []
        sums.append({(batch.epoch, batch.step): (batch.names, batch.pixels) for batch in gang.micro_batches(0)})
        gang.remove_records()
        shutil.rmtree(gang.output)
    assert sums[0].keys() == sums[1].keys()
    for place, (names, pixels) in sums[0].items():
        assert sums[1][place][0] == names
        assert sums[1][place][1] == pytest.approx(pixels, rel=1e-4)


@pytest.mark.parametrize(("cached", "setting"), [("ram", {}), ("gpu", {"mixup": 0.5})])
def test_training_whose_images_cannot_be_cached_continues_and_warns(
    gangs: Gangs, tmp_path: Path, cached: str, setting: dict[str, Any]
) -> None:
    folder = data_set(tmp_path / "set", 16)
    empty = tmp_path / "memory"
    empty.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(empty)], check=True)
    try:
        environment = {"YOLOJOB_TEST_SHARED_MEMORY": str(empty), "YOLOJOB_TEST_DEVICE_CACHE": "1"}
        settings = {"epochs": 1, "cache": cached, **setting}
        code, report, gang = train(gangs, folder, train=settings, environment=environment)
    finally:
        subprocess.run(["umount", "-l", str(empty)], check=True)
    assert code == 0, gang.log()
    assert any(w.startswith(f"cache: {cached}: ") and "decoded in every epoch" in w for w in report.warnings), report


def test_shared_images_are_decoded_once_per_node_and_outlive_their_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(image_cache, "MEMORY", tmp_path)
    pixels = [np.full((3 + i, 4, 3), i, np.uint8) for i in range(5)]
    calls: list[int] = []

    def load(i: int) -> image_cache.Loaded:
        calls.append(i)
        return pixels[i], (30 + i, 40), (3 + i, 4)

    first, second = (image_cache.share("key", 5, load) for _ in range(2))
    assert sorted(calls) == [0, 1, 2, 3, 4]
    first.unlink()
    assert list(tmp_path.iterdir()) == []
    for i, expected in enumerate(pixels):
        assert (first[i] == expected).all()
        assert (second[i] == expected).all()
        assert first.originals[i] == (30 + i, 40)
    first[0][:] = 9
    assert (second[0] == 0).all(), "a change in one process is visible in another"


def test_fits_without_enough_shared_memory_names_the_setting() -> None:
    assert image_cache.why_not_fitting(1) is None
    message = image_cache.why_not_fitting(1 << 60)
    assert message is not None
    assert "spec.workers.sharedMemory" in message
