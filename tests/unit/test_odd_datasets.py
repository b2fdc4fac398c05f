"""Odd datasets, each read by Ultralytics on its own and by this trainer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.odd_datasets import CASES, tree, write_ordinary
from ultralytics.cfg import get_cfg
from yolojob_trainer.data import job_dataset
from yolojob_trainer.data.dataset_description import DatasetDescription
from yolojob_trainer.data.job_dataset import NodeFolders
from yolojob_trainer.errors import BadInput
from yolojob_trainer.tasks.vision_task import VISION_TASKS

from yolojob.api.spec import YoloTrainingJobSpec
from yolojob.api.task import Task

pytestmark = pytest.mark.torch


STOCK = Path(__file__).parent.parent / "support" / "stock_verdict.py"


def read(folder: Path, cache: Path) -> str:
    """Return the verdict of this trainer on a dataset in a volume."""
    spec = YoloTrainingJobSpec.model_validate(
        {"model": {"name": "yolo11n.yaml"}, "dataset": {"uri": f"pvc://{folder.name}"}}
    )
    node = NodeFolders(cache=cache, volumes=folder.parent)
    try:
        found = job_dataset.open_dataset(spec, folder, Task.DETECT, node)
        data = found.description
        dataset = VISION_TASKS[Task.DETECT].dataset(
            label_folder=cache / "labels",
            boundary=found.boundary,
            img_path=[*map(str, data.splits["train"].folders), *map(str, _listing(data, cache))],
            imgsz=64,
            hyp=get_cfg(overrides={"imgsz": 64, "task": "detect", "mosaic": 0.0}),
            augment=True,
            prefix="train: ",
            data={"names": data.names, "nc": len(data.names), "channels": data.channels},
        )
        if classes := [message for message in dataset.left_out if "exceeds dataset class count" in message]:
            raise ValueError(classes[0])  # as the trainer does
        for number in range(len(dataset)):
            dataset[number]
    except (BadInput, ValueError, FileNotFoundError) as error:  # which the trainer reports as bad input
        return str(error)
    return f"{len(dataset)} of {dataset.scan.total} images"


def _listing(data: DatasetDescription, cache: Path) -> list[Path]:
    images = data.splits["train"].images
    if not images:
        return []
    path = cache / "train.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{image}\n" for image in images))
    return [path]


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Ultralytics' verdicts, by case; with a note where it changes the dataset."""
    root = tmp_path_factory.mktemp("stock")
    folders, before = {}, {}
    for number, (name, (change, _)) in enumerate(CASES.items()):
        folders[name] = root / str(number)
        write_ordinary(folders[name])
        change(folders[name])
        before[name] = tree(folders[name])
    environment = {**os.environ, "YOLO_OFFLINE": "1", "YOLO_CONFIG_DIR": str(root), "YOLO_VERBOSE": "false"}
    command = [sys.executable, str(STOCK), *map(str, folders.values())]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    verdicts = json.loads(done.stdout.splitlines()[-1])
    result = {}
    for name, folder in folders.items():
        after = tree(folder)
        changed = [file for file, content in before[name].items() if after.get(file) != content]
        result[name] = verdicts[str(folder)] + (f"; changes {', '.join(changed)}" if changed else "")
    return result


@pytest.mark.parametrize("name", CASES)
def test_odd_dataset_is_read_or_refused_and_never_changed(name: str, tmp_path: Path) -> None:
    change, expected = CASES[name]
    folder = tmp_path / "set"
    write_ordinary(folder)
    change(folder)
    before = tree(folder)
    found = read(folder, tmp_path / "cache")
    assert expected in found
    assert tree(folder) == before


REFUSED_ONLY_HERE = {
    "class id beyond names",  # images that are left out in silence would spoil a class
    "aliases that fill the memory",
    "list that leads out of the dataset",
    "link out of the volume",
}
READ_ONLY_HERE = {"path of another machine"}


def test_verdicts_are_those_of_ultralytics_except_for_what_is_unsafe(stock: dict[str, str], tmp_path: Path) -> None:
    """Where both read a dataset, both use the same number of images."""
    verdicts = {}
    for number, (name, (change, _)) in enumerate(CASES.items()):
        folder = tmp_path / str(number)
        write_ordinary(folder)
        change(folder)
        verdicts[name] = (stock[name], read(folder, tmp_path / "cache" / str(number)))
    reads = {name: tuple(text.endswith(" images") for text in pair) for name, pair in verdicts.items()}
    assert {name for name, pair in reads.items() if pair == (True, False)} == REFUSED_ONLY_HERE
    assert {name for name, pair in reads.items() if pair == (False, True)} == READ_ONLY_HERE
    different = {name: verdicts[name] for name, pair in reads.items() if all(pair) and len(set(verdicts[name])) > 1}
    assert different == {}
