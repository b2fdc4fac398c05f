"""Official weights by their name: from a mirror, with checksum, and without a network."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from support.stores import https
from ultralytics import YOLO
from yolojob_trainer.errors import BadInput
from yolojob_trainer.model import official_weights, resolve
from yolojob_trainer.model.resolve import architecture_of

from yolojob.api.spec import ModelRef
from yolojob.api.task import Task
from yolojob.api.uri import Uri

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights under official names: of random values, saved by Ultralytics."""
    folder = tmp_path_factory.mktemp("mirror")
    for name in ("yolo26n", "yolo26n-seg"):
        torch.manual_seed(1)
        YOLO(f"{name}.yaml").save(str(folder / f"{name}.pt"))
    return folder


def source(name: str, folder: Path, task: Task | None = None) -> resolve.NetworkSource:
    return resolve.resolve(ModelRef(name=name), volumes=folder, cache=folder / "cache", task=task)


def test_weights_are_found_by_their_name_in_the_folder_of_the_mirror(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YOLOJOB_WEIGHTS", f"file://{mirror}/")
    found = source("yolo26n-seg.pt", tmp_path, Task.SEGMENT)
    assert found.task is Task.SEGMENT
    expected = YOLO(str(mirror / "yolo26n-seg.pt")).model.state_dict()
    assert found.weights is not None
    taken = found.weights.state_dict()
    assert taken.keys() == expected.keys()
    assert all(torch.equal(taken[key], expected[key]) for key in expected)
    with pytest.raises(BadInput, match=r"spec.task: detect: the model yolo26n-seg.pt is for the task segment"):
        source("yolo26n-seg.pt", tmp_path, Task.DETECT)
    with pytest.raises(BadInput, match=r"yolo26s.pt: .*there is no .pt or .*set YOLOJOB_WEIGHTS .*from yolo26s.yaml"):
        source("yolo26s.pt", tmp_path)


def test_weights_of_an_https_mirror_are_downloaded_once_and_compared_with_their_checksum(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hashlib.sha256((mirror / "yolo26n.pt").read_bytes()).hexdigest()
    with https(mirror, tmp_path, ranges=True) as (address, seen):
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        monkeypatch.setenv("YOLOJOB_WEIGHTS", address)
        monkeypatch.setattr(official_weights, "SHA256", {"yolo26n.pt": "0" * 64})
        with pytest.raises(BadInput, match=rf"spec.model.name: yolo26n.pt: .* has the SHA-256 {digest}, not 0000"):
            source("yolo26n.pt", tmp_path)
        monkeypatch.setattr(official_weights, "SHA256", {"yolo26n.pt": digest})
        assert source("yolo26n.pt", tmp_path).task is Task.DETECT
        downloads = len(seen)
        assert source("yolo26n.pt", tmp_path).task is Task.DETECT
        assert len(seen) == downloads
        with pytest.raises(BadInput, match=r"spec.model.name: yolo26s.pt: .*set spec.model.weights.uri"):
            source("yolo26s.pt", tmp_path)


@pytest.mark.parametrize("name", ["yolo26n-cars.pt", "yolo99n.pt", "yolo26n-seg-2.pt"])
def test_unknown_name_is_refused_with_similar_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match=f"spec.model.name: {name}: Ultralytics publishes no .*similar names: yolo"):
        source(name, tmp_path)


@pytest.mark.parametrize("folder", ["/weights", "http://host/w", "s3://", "builtin://digits"])
def test_address_of_a_mirror_that_is_no_uri_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.setenv("YOLOJOB_WEIGHTS", folder)
    with pytest.raises(BadInput, match="YOLOJOB_WEIGHTS: "):
        source("yolo26n.pt", tmp_path)


def test_addresses_are_those_of_the_release_of_ultralytics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("YOLOJOB_WEIGHTS", raising=False)
    assert set(official_weights.SHA256) <= official_weights.NAMES
    for name in official_weights.NAMES:
        uri = official_weights.locate(name)
        assert isinstance(uri, Uri)
        assert str(uri).partition("#")[0] == f"https://github.com/ultralytics/assets/releases/download/v8.4.0/{name}"
        assert str(uri).partition("#sha256=")[2] == official_weights.SHA256.get(name, "")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ({"name": "yolo26n.pt"}, "yolo26n.yaml"),
        ({"name": "yolo11m-seg.pt"}, "yolo11m-seg.yaml"),
        ({"name": "yolo26n.yaml"}, "yolo26n.yaml"),
        ({"name": "cars.pt", "weights": {"uri": "pvc://w"}}, "cars.pt"),
        ({"name": "yolov8n-oiv7.pt"}, "yolov8n-oiv7.pt"),
    ],
)
def test_size_of_official_weights_is_that_of_their_architecture(model: dict[str, object], name: str) -> None:
    assert architecture_of(ModelRef.model_validate(model)).name == name
