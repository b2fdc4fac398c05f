"""A training starts as one of stock Ultralytics: from the same weights, counted, and with the same loss.

Both sides seed the generator of random numbers before they build the network, so that also what no file of weights
gives is equal.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support.processes import BATCH, IMAGES, TINY, ForkServers, Gang, Gangs
from ultralytics import YOLO
from yolojob_trainer.model import weights_file
from yolojob_trainer.model.resolve import resolve

from yolojob.api.spec import ModelRef

pytestmark = pytest.mark.processes

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TRAIN = {"epochs": 1, "batch": BATCH, "imgsz": 64, "amp": False, "nbs": BATCH, "warmup_epochs": 0, "optimizer": "AdamW"}


@dataclass(frozen=True)
class Case:
    """A training of a task, and the weights that it starts from."""

    name: str
    task: str = ""
    """Suffix of the model and of the dataset."""
    model: str = "yolo26"
    weights: str = ""
    """File of weights that the training starts from; empty: random weights."""
    own_network: bool = False
    """Whether the network is that of the job, and not that of the file of weights."""
    train: dict[str, Any] = field(default_factory=dict)


CASES = (
    Case("architecture"),
    Case("own-yaml", weights="mine.yaml"),
    Case("same-classes", weights="same.pt"),
    Case("safetensors", weights="same.safetensors"),
    Case("other-class-count", weights="many.pt"),
    Case("classes-in-another-order", weights="order.pt"),
    Case("without-cls-remap", weights="order.pt", train={"cls_remap": False}),
    Case("freeze-count", weights="same.pt", train={"freeze": 3}),
    Case("freeze-list", weights="same.pt", train={"freeze": [0, 2]}),
    Case("trained-here", model="yolo11", weights="trained.pt"),
    Case("backbone-of-another-task", task="-seg", model="yolo11", weights="trained.pt", own_network=True),
    Case("segment", task="-seg", model="yolo11"),
    Case("pose", task="-pose"),
    Case("obb", task="-obb"),
    Case("classify", task="-cls"),
    Case("semantic", task="-sem"),
    Case("depth", task="-depth"),
)


@dataclass(frozen=True)
class Start:
    """What a training starts from."""

    ours: dict[str, Any]
    stock: dict[str, Any]
    log: str
    """Of the training here."""


def network(model: str, task: str, classes: int, folder: Path) -> Path:
    """Writes the description of a very small network for stock Ultralytics; returns the file."""
    reference = ModelRef.model_validate({"name": f"{model}n{task}.yaml", "scale": TINY[model]})
    description = resolve(reference, volumes=folder, cache=folder).description
    path = folder / f"{model}{task}-{classes}.yaml"
    path.write_text(yaml.safe_dump({**description, "nc": classes}))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, finished: Gang, digits: dict[str, Path]) -> Path:
    """Files of weights, and a dataset whose classes have names."""
    folder = tmp_path_factory.mktemp("weights")
    dataset = Path(shutil.copytree(digits["digits"], folder / "data"))
    content = yaml.safe_load((dataset / "data.yaml").read_text())
    (dataset / "data.yaml").write_text(yaml.safe_dump({**content, "names": dict(enumerate(WORDS))}))
    names = {
        "same": list(WORDS),
        "many": [f"thing {number}" for number in range(80)],
        "order": ["cat", *reversed(WORDS[2:]), "Zero "],
    }
    for name, classes in names.items():
        torch.manual_seed(7)
        model = YOLO(str(network("yolo26", "", len(classes), folder)))
        model.model.names = dict(enumerate(classes))
        model.save(str(folder / f"{name}.pt"))
    weights_file.write_safetensors(weights_file.read(folder / "same.pt", "SRC"), folder / "same.safetensors")
    shutil.copy(network("yolo26", "", len(WORDS), folder), folder / "mine.yaml")
    shutil.copy(finished.output / "weights" / "best.pt", folder / "trained.pt")
    return folder


@pytest.fixture(scope="module")
def starts(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, fork_servers: ForkServers, cache: Path
) -> dict[str, Start]:
    """The starts of all cases, by their names. Ultralytics is imported once for all of them."""
    root = tmp_path_factory.mktemp("starts")
    gangs = {case.name: train(case, folder, root, cache, fork_servers) for case in CASES}
    cases = [stock_case(case, folder, root, cache) for case in CASES]
    (root / "cases.json").write_text(json.dumps(cases))
    environment = {**os.environ, "YOLO_OFFLINE": "1", "YOLO_CONFIG_DIR": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "support.stock_start", str(root / "cases.json")]
    done = subprocess.run(
        command, env=environment, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        name: Start(
            ours=torch.load(gang.record, weights_only=True),
            stock=torch.load(root / name / "stock", weights_only=True),
            log=gang.log(),
        )
        for name, gang in gangs.items()
    }


def train(case: Case, folder: Path, root: Path, cache: Path, servers: ForkServers) -> Gang:
    """Starts the training of a case here, until it has recorded its first step."""
    (root / case.name).mkdir()
    gangs = Gangs(root / case.name, cache, servers)
    spec: dict[str, Any] = {"model": case.model, "task": case.task, "replicas": 1, "train": case.train}
    if not case.task:
        spec["dataset"] = {"uri": f"file://{folder}/data"}
    if case.own_network:
        spec["weights"] = {"uri": f"file://{folder}/{case.weights}"}
    elif case.weights:
        spec["network"] = {"name": case.weights, "weights": {"uri": f"file://{folder}"}}
    gang = gangs(1, "first_step", **spec)
    try:
        assert gang.wait() == [0], gang.log()
    finally:
        gangs.stop()
    return gang


def stock_case(case: Case, folder: Path, root: Path, cache: Path) -> dict[str, Any]:
    """Returns the same training for `support.stock_start`."""
    data = next(cache.glob(f"datasets/digits{case.task}-v*")) if case.task else folder / "data"
    model = folder / case.weights.replace("safetensors", "pt")
    extra = {}
    if case.own_network:
        extra["pretrained"] = str(model)
    if case.own_network or not case.weights:
        model = network(case.model, case.task, 1 if case.task == "-depth" else 10, folder)
    return {
        "model": str(model),
        "data": str(data if case.task == "-cls" else data / "data.yaml"),
        "train": {**TRAIN, "fraction": IMAGES, **case.train, **extra},
        "folder": str(root / case.name),
        "record": str(root / case.name / "record"),
        "out": str(root / case.name / "stock"),
    }


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_training_starts_from_the_weights_of_stock_ultralytics(starts: dict[str, Start], name: str) -> None:
    start = starts[name]
    ours, stock = start.ours["state"], start.stock["state"]
    assert ours.keys() == stock.keys()
    assert [key for key in stock if not torch.equal(ours[key], stock[key])] == []
    assert start.ours["trained"] == start.stock["trained"]
    taken = start.stock["taken"]
    assert (taken is None) == ("Transferred" not in start.log)
    assert taken is None or f"Transferred {taken}/" in start.log


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_first_loss_is_that_of_stock_ultralytics(starts: dict[str, Start], name: str) -> None:
    start = starts[name]
    torch.testing.assert_close(start.ours["loss"], start.stock["loss"], rtol=1e-4, atol=0.0)
    assert start.ours["loss"].dtype == torch.float64
    assert float(start.ours["loss"].sum()) > 0


def test_cases_start_from_different_weights(starts: dict[str, Start]) -> None:
    """Otherwise, a comparison of the others would show nothing."""
    counts = {name: start.stock["taken"] for name, start in starts.items()}
    whole = counts["same-classes"]
    assert counts["architecture"] is None
    assert counts["safetensors"] == counts["freeze-count"] == whole
    assert counts["classes-in-another-order"] == counts["without-cls-remap"] == whole
    remapped, copied = (starts[name].ours["state"] for name in ("classes-in-another-order", "without-cls-remap"))
    assert any(not torch.equal(remapped[key], copied[key]) for key in copied)
    assert 0 < counts["other-class-count"] < whole
    assert counts["backbone-of-another-task"] > 0
    trained = {name: len(start.ours["trained"]) for name, start in starts.items()}
    assert trained["freeze-count"] < trained["freeze-list"] < trained["same-classes"]
