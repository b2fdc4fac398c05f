"""Datasets that Ultralytics publishes: their names, their archives, and a training on one from a mirror."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from support.cli import call, manifest, small
from yolojob_trainer.data import builtin_digits, official_datasets
from yolojob_trainer.data.job_dataset import NodeFolders, locate, open_dataset
from yolojob_trainer.errors import BadInput

from yolojob.api import uri as uris
from yolojob.api.spec import Dataset, YoloTrainingJobSpec
from yolojob.api.task import Task
from yolojob.api.uri import ULTRALYTICS_DATASETS

pytestmark = pytest.mark.torch


CLASSIFICATIONS = {name for name in ULTRALYTICS_DATASETS if not official_datasets.data_file(name).exists()}


def address(name: str) -> str:
    return str(official_datasets.address(uris.parse(f"ultralytics://{name}", uris.DATASET_SCHEMES)))


def test_names_and_archives_are_those_of_ultralytics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("YOLOJOB_DATASETS", raising=False)
    published = {}
    for path in official_datasets.DATA_FILES.glob("*.yaml"):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        download = str(content.get("download")).strip()
        if download.startswith("https://") and "\n" not in download and content.get("channels", 3) in (1, 3):
            published[path.stem] = download
    ours = {name: address(name) for name in ULTRALYTICS_DATASETS if name not in CLASSIFICATIONS}
    assert ours == published
    assert {"imagenet10", "mnist160"} <= CLASSIFICATIONS


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mirror with coco8.zip and imagenet10.zip, made of digits; their own data file must not be read."""
    folder = tmp_path / "mirror"
    for name, made_from in (("coco8", "digits"), ("imagenet10", "digits-cls")):
        builtin_digits.WRITERS[made_from](tmp_path / "made" / name / name)
        (tmp_path / "made" / name / name / "data.yaml").unlink(missing_ok=True)
        shutil.make_archive(str(folder / name), "zip", tmp_path / "made" / name)
    monkeypatch.setenv("YOLOJOB_DATASETS", f"file://{folder}")
    return folder


def test_dataset_is_described_by_the_data_file_of_ultralytics(mirror: Path, tmp_path: Path) -> None:
    node = NodeFolders(cache=tmp_path / "cache", volumes=tmp_path)
    expected = yaml.safe_load(official_datasets.data_file("coco8").read_text(encoding="utf-8"))["names"]
    for name, task, classes in (("coco8", Task.DETECT, expected), ("imagenet10", Task.CLASSIFY, None)):
        spec = YoloTrainingJobSpec.model_validate(
            {"model": {"name": "yolo11n.yaml"}, "dataset": {"uri": f"ultralytics://{name}"}}
        )
        folder = locate(spec.dataset, cache=node.cache, volumes=node.volumes, progress=lambda *_: None)
        found = open_dataset(spec, folder, task, node)
        assert found.description.names == (classes or {digit: str(digit) for digit in range(10)})
        assert found.boundary == folder
        for split in ("train", "val"):
            (images,) = found.description.splits[split].folders
            assert images.is_relative_to(folder)


@pytest.mark.parametrize("uri", ["ultralytics://coco", "ultralytics://../x", "ultralytics://coco8/x", "ultralytics://"])
def test_unknown_name_is_refused_with_the_known_ones(uri: str) -> None:
    with pytest.raises(ValueError, match="NAME is one of coco8, "):
        Dataset.model_validate({"uri": uri})


def test_mirror_that_is_no_uri_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLOJOB_DATASETS", "http://host/x")
    with pytest.raises(BadInput, match="YOLOJOB_DATASETS: http://host/x: must begin with"):
        address("coco8")


@pytest.mark.processes
def test_training_on_a_dataset_of_a_mirror(mirror: Path, tmp_path: Path) -> None:
    document = small(dataset={"uri": "ultralytics://coco8"})
    done = call(tmp_path, tmp_path / "cache", "run", manifest(tmp_path, document))
    assert done.returncode == 0, done.stderr + done.stdout
    assert "epoch 2/2" in done.stdout
