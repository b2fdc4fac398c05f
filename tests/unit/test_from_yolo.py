"""`yolojob from-yolo`: manifests from commands and settings of Ultralytics."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from support import ROOT
from support.ultralytics_defaults import ultralytics_defaults
from typer.testing import CliRunner, Result

from yolojob.api import manifest
from yolojob.api.errors import UserError
from yolojob.api.manifest import InvalidManifest
from yolojob.api.train_settings import REPLACED, TrainSettings
from yolojob.cli.main import app
from yolojob.cli.yolo_command import NO_PLACE, UNUSED, NotConvertible, convert, parse_command


def yolojob(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def spec_of(command: str) -> dict[str, Any]:
    """The spec for a command; it is valid."""
    document = convert(parse_command(command)).manifest
    manifest.parse(document)
    return dict(document["spec"])


@pytest.mark.parametrize(
    ("arguments", "train"),
    [
        ("epochs=3 imgsz=320 lr0=1e-3 optimizer=SGD", {"epochs": 3, "imgsz": 320, "lr0": 0.001, "optimizer": "SGD"}),
        ("epochs=100 batch=16 imgsz=640 lr0=0.01 amp=True", {}),
        ("cos_lr plots=True, --seed=7", {"cos_lr": True, "plots": True, "seed": 7}),
        ("epochs = 3 batch= 8 patience =5", {"epochs": 3, "batch": 8, "patience": 5}),
        ("cache=ram freeze=10 classes=[0,2]", {"cache": "ram", "freeze": 10, "classes": [0, 2]}),
        ("imgsz=[640,480] amp=False", {"amp": False}),
        ("imgsz=[320,480]", {"imgsz": 480}),
        ("multi_scale=True", {"multi_scale": 0.5}),
        ("batch=-1", {}),
        ("resume=False rect=False save_json=False", {}),
    ],
)
def test_settings_of_a_training_keep_their_names_and_defaults_are_left_out(arguments: str, train: Any) -> None:
    assert spec_of(f"yolo train data=d.yaml {arguments}")["train"] == train


@pytest.mark.parametrize(
    ("arguments", "part", "expected"),
    [
        ("device=0", "workers", {"gpu": {"count": 1}}),
        ("device=0,1,2,3", "workers", {"gpu": {"count": 4}}),
        ("'device=[0, 1]'", "workers", {"gpu": {"count": 2}}),
        ("device=cuda:1", "workers", {"gpu": {"count": 1}}),
        ("device=cpu", "workers", None),
        ("device=mps", "workers", None),
        ("time=1.5", "runPolicy", {"activeDeadlineSeconds": 5400}),
        ("model=yolo11n.yaml", "model", {"name": "yolo11n.yaml"}),
        ("model=yolo11n.pt", "model", {"name": "yolo11n.pt"}),
        ("model=w/yolo11n.pt", "model", {"name": "yolo11n.pt", "weights": {"uri": "pvc://data/weights/yolo11n.pt"}}),
        ("model=yolo11n.pt pretrained=False", "model", {"name": "yolo11n.yaml"}),
        (
            "model=nets/mine.yaml pretrained=/w/a.pt",
            "model",
            {"name": "mine.yaml", "weights": {"uri": "pvc://data/weights/a.pt"}},
        ),
        ("", "dataset", {"uri": "pvc://data/d", "config": "d.yaml"}),
        ("data=/sets/Street Signs/data.yaml", "dataset", None),
        ("'data=/sets/Street Signs/data.yaml'", "dataset", {"uri": "pvc://data/street-signs"}),
        ("data=https://host/set.zip", "dataset", {"uri": "https://host/set.zip"}),
        ("data=coco8.yaml", "dataset", {"uri": "ultralytics://coco8"}),
        ("data=ultralytics://coco128", "dataset", {"uri": "ultralytics://coco128"}),
        ("data=sets/coco8.yaml", "dataset", {"uri": "pvc://data/sets", "config": "coco8.yaml"}),
        ("data=imagenet10 task=classify", "dataset", {"uri": "ultralytics://imagenet10"}),
        (
            f"data=https://host/set.zip#sha256={'0' * 64}",
            "dataset",
            {"uri": f"https://host/set.zip#sha256={'0' * 64}"},
        ),
        ("data=s3://bucket/set", "dataset", {"uri": "s3://bucket/set"}),
    ],
)
def test_other_arguments_go_to_their_own_fields(arguments: str, part: str, expected: Any) -> None:
    command = f"yolo detect train data=d.yaml {arguments}"
    if part == "dataset" and expected is None:
        with pytest.raises(NotConvertible, match="is no task, no mode and no ARGUMENT=VALUE"):
            parse_command(command)
    else:
        assert spec_of(command).get(part) == expected


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "must begin with yolo"),
        ("python train.py", "must begin with yolo"),
        ("yolo 'train", "cannot be read"),
        ("yolo train task=segmentation", "task: segmentation: must be detect, segment, pose, obb, classify"),
        ("yolo predict model=x.pt", "mode: predict: a job can only train"),
        ("yolo train epoch=3", "epoch: unknown field; did you mean epochs?"),
        ("yolo train epochs", "epochs: is no task"),
        ("yolo train time=soon", "time: soon: must be a number of hours"),
        ("yolo train epochs=many", "spec.train.epochs"),
        ("yolo train batch=16 device=0,1,2", "spec.train.batch"),
    ],
)
def test_command_that_cannot_be_converted_is_refused_with_the_reason(command: str, message: str) -> None:
    done = yolojob("from-yolo", command)
    assert done.exit_code == 2
    assert message in done.stderr


@pytest.mark.torch
def test_every_setting_of_ultralytics_is_known(tmp_path: Path) -> None:
    """The args.yaml of a finished run holds all of them."""
    path = tmp_path / "args.yaml"
    settings = {**ultralytics_defaults(), "model": "yolo11n.yaml", "data": "d.yaml", "task": "detect", "mode": "train"}
    path.write_text(yaml.safe_dump({**settings, "epochs": 7, "save_dir": "runs/detect/train", "name": "signs"}))
    done = yolojob("from-yolo", str(path))
    assert done.exit_code == 0, done.stderr
    document = yaml.safe_load(done.stdout)
    assert document["metadata"]["name"] == "signs"
    # Plots and Ultralytics' log are off here unless a manifest asks for them.
    assert document["spec"]["train"] == {"epochs": 7, "plots": True, "verbose": True}
    manifest.parse(document)
    notes = [line for line in done.stdout.splitlines() if line.startswith("#")]
    assert [note.partition("=")[0] for note in notes[:-1]] == ["# data"]
    assert "gpu" in notes[-1].lower()


@pytest.mark.parametrize("argument", ["rect=True", "resume=True", "project=runs", "exist_ok", "save_json=True"])
def test_argument_without_a_place_is_explained(argument: str) -> None:
    notes = convert(parse_command(f"yolo train data=d.yaml {argument}")).notes
    name = argument.partition("=")[0]
    assert len([note for note in notes if note.startswith(f"{name}=")]) == 1


def test_lists_of_arguments_do_not_overlap() -> None:
    assert not UNUSED & (set(NO_PLACE) | set(REPLACED) | set(TrainSettings.model_fields))


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", "1: 2", "\x00", "just text"])
def test_file_without_settings_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "args.yaml"
    path.write_text(content)
    done = yolojob("from-yolo", str(path))
    assert done.exit_code == 2
    assert str(path) in done.stderr
    assert yolojob("from-yolo", str(tmp_path / "missing.yaml")).exit_code == 2


VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers()))


NAMES = [*TrainSettings.model_fields, *REPLACED, *NO_PLACE, *sorted(UNUSED), "multi_scale", "save_dir", "other"]


@given(st.dictionaries(st.sampled_from(NAMES), VALUES))
def test_any_settings_give_a_manifest_or_an_error_for_the_user(arguments: dict[str, Any]) -> None:
    try:
        manifest.parse(convert(arguments).manifest)
    except (UserError, InvalidManifest) as error:
        assert str(error)


@given(st.text())
def test_any_command_is_parsed_or_refused(text: str) -> None:
    try:
        parse_command(f"yolo {text}")
    except NotConvertible as error:
        assert str(error)


@pytest.mark.parametrize(
    ("command", "task", "model"),
    [
        ("yolo segment train data=x.yaml", None, "yolo26n-seg.pt"),
        ("yolo train model=yolo11n-pose.pt", None, "yolo11n-pose.pt"),
        ("yolo pose train model=runs/best.pt", "pose", "best.pt"),
        ("yolo detect train model=yolo26s.pt", None, "yolo26s.pt"),
        ("yolo obb train model=yolov8n-p2.yaml", None, "yolov8n-p2.yaml"),
        ("yolo depth train data=x.yaml", None, "yolo26n-depth.pt"),
    ],
)
def test_task_is_that_of_the_model_or_stated_for_a_model_of_the_users_own(
    command: str, task: str | None, model: str
) -> None:
    spec = spec_of(command)
    assert (spec.get("task"), spec["model"]["name"]) == (task, model)


def test_task_that_contradicts_the_model_is_noted() -> None:
    notes = convert(parse_command("yolo segment train model=yolo26n.pt data=x.yaml")).notes
    assert "task=segment: the model yolo26n.pt is for detect, which counts, as in Ultralytics" in notes


@pytest.mark.parametrize(("arguments", "imgsz"), [("", 224), ("imgsz=64", 64), ("imgsz=640", None)])
def test_classification_takes_a_folder_and_ultralytics_own_image_size(arguments: str, imgsz: int | None) -> None:
    spec = spec_of(f"yolo classify train data=/sets/Flowers {arguments}")
    assert spec["dataset"] == {"uri": "pvc://data/flowers"}
    assert spec["train"].get("imgsz") == imgsz


PAGE = (ROOT / "docs" / "coming-from-yolo.md").read_text()
ROWS = re.findall(r"^\| `(yolo .*?)` \| `(.*?)` \|$", PAGE, re.M)


def test_page_about_commands_shows_ten_of_them() -> None:
    assert len(ROWS) == 10


@pytest.mark.parametrize(("command", "place"), ROWS)
def test_command_on_the_page_has_the_place_that_the_page_says(command: str, place: str) -> None:
    assert_contains(spec_of(command), yaml.safe_load(place))


def assert_contains(whole: Any, part: Any) -> None:
    if isinstance(part, dict):
        for key, value in part.items():
            assert_contains(whole[key], value)
    else:
        assert whole == part
