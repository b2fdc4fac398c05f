"""Files of weights: .safetensors files have the same network as the .pt file, and hostile ones are refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from typer.testing import CliRunner
from ultralytics import YOLO
from ultralytics.nn.tasks import yaml_model_load
from yolojob_trainer import convert
from yolojob_trainer.errors import BadInput
from yolojob_trainer.model import network, weights_file
from yolojob_trainer.model.resolve import architectures, resolve
from yolojob_trainer.model.weights_file import DESCRIPTION

from yolojob.api.constants import ExitCode
from yolojob.api.spec import ModelRef
from yolojob.api.task import Task
from yolojob.cli.main import app

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of random values for each task, saved by Ultralytics."""
    folder = tmp_path_factory.mktemp("weights")
    for suffix in ("", "-seg", "-pose", "-obb", "-cls", "-sem", "-depth"):
        torch.manual_seed(1)
        model = YOLO(f"yolo26n{suffix}.yaml")
        model.model.names = {number: f"class {number}" for number in model.model.names}
        model.save(str(folder / f"yolo26n{suffix}.pt"))
    return folder


def metadata(path: Path) -> dict[str, Any]:
    """Returns the description of the network in a .safetensors file, and its classes."""
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()[DESCRIPTION])  # type: ignore[no-any-return]


@pytest.mark.parametrize("suffix", ["", "-seg", "-pose", "-obb", "-cls", "-sem", "-depth"])
def test_converted_weights_are_those_of_the_pt_file(folder: Path, tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"yolo26n{suffix}.safetensors"
    assert convert.main(["weights", str(folder / f"yolo26n{suffix}.pt"), str(target)]) == ExitCode.SUCCEEDED
    reference: Any = YOLO(str(folder / f"yolo26n{suffix}.pt")).model
    model = ModelRef.model_validate({"name": target.name, "weights": {"uri": f"file://{target}"}})
    source = resolve(model, volumes=tmp_path, cache=tmp_path)
    assert source.task is Task(reference.task)
    assert source.weights is not None
    taken, expected = source.weights.state_dict(), reference.state_dict()
    assert taken.keys() == expected.keys()
    assert all(torch.equal(taken[name], expected[name]) for name in expected)
    weights: Any = source.weights
    assert weights.names == reference.names
    assert metadata(target)["description"]["head"] == reference.yaml["head"]
    # Half precision, as in the .pt file. Its pickled classes take less than the names of the tensors here.
    assert target.stat().st_size < 1.2 * (folder / f"yolo26n{suffix}.pt").stat().st_size


def test_command_converts_weights(folder: Path, tmp_path: Path) -> None:
    """In a process of its own, which prints to this one's output."""
    target = tmp_path / "new" / "yolo26n.safetensors"
    done = CliRunner().invoke(app, ["convert", "weights", str(folder / "yolo26n.pt"), str(target)])
    assert done.exit_code == 0, done.output
    weights = weights_file.read(target, "SRC")
    assert len(weights.state_dict()) == len(YOLO(str(folder / "yolo26n.pt")).model.state_dict())


def test_conversion_of_weights_states_what_it_refuses(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fused = YOLO(str(folder / "yolo26n.pt"))
    fused.fuse()
    fused.save(str(tmp_path / "fused.pt"))
    torch.save({"model": torch.nn.Linear(1, 1)}, tmp_path / "other.pt")
    (tmp_path / "there.safetensors").touch()
    (tmp_path / "link.safetensors").symlink_to("nowhere")
    for source, target, message in (
        ("missing.pt", "x.safetensors", "SRC: .*missing.pt: there is no such file"),
        ("other.pt", "x.safetensors", "SRC: .*other.pt "),
        ("other.pt", "x.pth", r"DST: .*x.pth: the name must end with \.safetensors"),
        ("other.pt", "there.safetensors", "DST: .*there.safetensors: exists"),
        (str(folder / "yolo26n.pt"), "link.safetensors", "File exists"),
        ("fused.pt", "x.safetensors", "DST: .*the network cannot be built"),
    ):
        code = convert.main(["weights", str(tmp_path / source), str(tmp_path / target)])
        assert code == ExitCode.BAD_INPUT, source
        assert re.search(message, capsys.readouterr().err), source
    assert not (tmp_path / "x.safetensors").exists()
    assert not list(tmp_path.glob(".x*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "does not describe its network; make the file with `yolojob convert weights"),
        ("{", "not valid"),
        ("[" * 100_000, "not valid"),
        ("[]", "not valid"),
        (json.dumps({"description": [], "names": {}}), "must be a mapping"),
        (json.dumps({"description": {}, "names": {"0": "a\n"}}), "names of classes must be text"),
        (json.dumps({"description": {}, "names": {"x": "a"}}), "not valid"),
        (json.dumps({"description": {}, "names": {}}), "its last module is "),
        (json.dumps({"description": {"head": [[0, 1, "Detect", []]]}, "names": {}}), "backbone: must be a list"),
        (" " * (1 << 21), "characters, at most"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_file_without_a_valid_description_is_refused(tmp_path: Path, change: str | None, message: str) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(1)}, path, {} if change is None else {DESCRIPTION: change})
    with pytest.raises(BadInput, match=f"spec.model.weights: .*{message}"):
        weights_file.read(path, "spec.model.weights")


@pytest.mark.parametrize(
    "layer",
    [
        [-1, 1, "os.system", ["touch owned"]],
        [-1, 1, "YAML.load", ["owned"]],
        [-1, 1, "torch_safe_load", ["owned"]],
        [-1, 1, "nn.Unknown", []],
        [-1, 1, "nn.init.zeros_", []],
        [-1, 1, "DetectionModel", ["/etc/passwd"]],
        [-1, 1, "torchvision.ops.nms", []],
    ],
    ids=lambda layer: str(layer[2]),
)
def test_description_of_other_things_than_layers_is_refused(folder: Path, tmp_path: Path, layer: list[Any]) -> None:
    change_description(folder, tmp_path / "x.safetensors", layer)
    with pytest.raises(BadInput, match=f"SRC: backbone: '{layer[2]}' is not a module of a network"):
        weights_file.read(tmp_path / "x.safetensors", "SRC")


@pytest.mark.parametrize(
    "layer",
    [
        [-1, 1, "Conv", [-5, 3, 2]],
        [10**9, 1, "Conv", [8, 3, 2]],
        [-1, 1, "Conv", ["a b", 3, 2]],
        [-1, 1, "Conv", [8, 3, 0]],
    ],
    ids=str,
)
def test_description_of_which_no_network_can_be_built_is_refused(
    folder: Path, tmp_path: Path, layer: list[Any]
) -> None:
    change_description(folder, tmp_path / "x.safetensors", layer)
    with pytest.raises(BadInput, match=r"SRC: .*x.safetensors: the network cannot be built"):
        weights_file.read(tmp_path / "x.safetensors", "SRC")


def change_description(folder: Path, path: Path, layer: list[Any]) -> None:
    """Writes weights whose description has another second layer."""
    weights: Any = weights_file.read(folder / "yolo26n.pt", "SRC")
    weights.yaml["backbone"][1] = layer
    weights_file.write_safetensors(weights, path)


@pytest.mark.parametrize("repeats", [10**9, "many", None, 1.5])
def test_layer_with_another_number_of_repeats_is_refused(folder: Path, tmp_path: Path, repeats: Any) -> None:
    change_description(folder, tmp_path / "x.safetensors", [-1, repeats, "nn.Identity", []])
    with pytest.raises(BadInput, match=r"SRC: backbone: must be a list .*, with at most 100 repeats"):
        weights_file.read(tmp_path / "x.safetensors", "SRC")


@pytest.mark.parametrize("part", ["backbone", "head"])
@pytest.mark.parametrize("arguments", [[512, "resnet18"], [512, "resnet18", "DEFAULT"], [512]])
def test_module_of_torchvision_starts_from_random_weights(part: str, arguments: list[Any]) -> None:
    description = {"backbone": [], "head": [], part: [[-1, 1, "TorchVision", arguments]]}
    network.forbid_downloads(description)
    assert arguments[2] is None


def test_error_of_the_disk_is_an_error_of_the_disk(folder: Path, tmp_path: Path) -> None:
    weights = weights_file.read(folder / "yolo26n.pt", "SRC")
    with pytest.raises(OSError, match="cannot be written"):
        weights_file.write_safetensors(weights, tmp_path / "missing" / "x.safetensors")


@pytest.mark.parametrize("text", ["nn.SiLU()", "torch.nn.LeakyReLU(0.1)", "nn.Hardtanh(-1, max_val=2.5)"])
def test_activation_of_a_description_is_used(folder: Path, tmp_path: Path, text: str) -> None:
    weights: Any = weights_file.read(folder / "yolo26n.pt", "SRC")
    weights.yaml["activation"] = text
    weights_file.write_safetensors(weights, tmp_path / "x.safetensors")
    read: Any = weights_file.read(tmp_path / "x.safetensors", "SRC")
    assert type(read.model[0].act).__name__ in text


def test_activation_in_a_description_is_not_evaluated(folder: Path, tmp_path: Path) -> None:
    weights: Any = weights_file.read(folder / "yolo26n.pt", "SRC")
    weights.yaml["activation"] = f"__import__('pathlib').Path('{tmp_path}/owned').touch()"
    weights_file.write_safetensors(weights, tmp_path / "x.safetensors")
    with pytest.raises(BadInput, match=r"SRC: activation: .* must be a module of torch.nn"):
        weights_file.read(tmp_path / "x.safetensors", "SRC")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("damage", ["missing", "shape", "extra"])
def test_tensors_of_another_network_are_refused(folder: Path, tmp_path: Path, damage: str) -> None:
    weights: Any = weights_file.read(folder / "yolo26n.pt", "SRC")
    weights_file.write_safetensors(weights, tmp_path / "x.safetensors")
    content = json.dumps(metadata(tmp_path / "x.safetensors"))
    tensors = weights.state_dict()
    if damage == "missing":
        del tensors["model.0.conv.weight"]
    elif damage == "shape":
        tensors["model.0.conv.weight"] = torch.zeros(1)
    else:
        tensors["model.0.other"] = torch.zeros(1)
    save_file(
        {name: tensor.clone() for name, tensor in tensors.items()}, tmp_path / "x.safetensors", {DESCRIPTION: content}
    )
    with pytest.raises(BadInput, match=r"the network cannot be built: .*model\.0"):
        weights_file.read(tmp_path / "x.safetensors", "SRC")


@given(content=st.binary(max_size=64), cut=st.integers(0, 4000))
@settings(max_examples=50)
def test_any_other_bytes_are_refused(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, content: bytes, cut: int
) -> None:
    path = tmp_path_factory.mktemp("bytes") / "x.safetensors"
    for data in (content, (folder / "yolo26n.pt").read_bytes()[:cut]):
        path.write_bytes(data)
        with pytest.raises(BadInput, match=r"SRC: .*x\.safetensors "):
            weights_file.read(path, "SRC")


def test_every_architecture_of_a_trained_task_has_a_valid_description() -> None:
    names = [name for name, head in architectures().items() if head in network.HEADS]
    assert len(names) > 100
    for name in names:
        network.check_description(yaml_model_load(name), name)


def test_each_task_has_a_network() -> None:
    assert set(network.NETWORKS) == set(Task) == set(network.HEADS.values())
