"""The typed list of Ultralytics' training settings, compared with the package."""

from __future__ import annotations

import re

import pytest
from support.ultralytics_defaults import ultralytics_defaults

from yolojob.api.train_settings import REPLACED, TrainSettings

PREDICT = [
    "source",
    "vid_stride",
    "stream_buffer",
    "visualize",
    "embed",
    "show",
    "save_frames",
    "save_txt",
    "save_conf",
    "save_crop",
]
PREDICT += ["show_labels", "show_conf", "show_boxes", "line_width", "tracker"]
EXPORT = ["format", "optimize", "dynamic", "simplify", "opset", "workspace", "nms", "dnn"]
VALIDATE = ["save_json"]
CHANGED_BY_YOLOJOB = {"amp"}

pytestmark = pytest.mark.torch


def test_train_settings_cover_every_setting_of_ultralytics() -> None:
    known = {*TrainSettings.model_fields, *REPLACED, *PREDICT, *EXPORT, *VALIDATE, "retina_masks"}
    upstream = set(ultralytics_defaults())
    assert upstream - known == set(), "Ultralytics has added a setting"
    assert known - upstream - {"resume"} == set(), "Ultralytics has removed a setting"


@pytest.mark.parametrize("name", sorted(set(TrainSettings.model_fields) - CHANGED_BY_YOLOJOB))
def test_train_settings_document_the_default_of_ultralytics(name: str) -> None:
    field = TrainSettings.model_fields[name]
    default = ultralytics_defaults()[name]
    if field.default is not None:
        assert field.default == default
        return
    assert field.description
    documented = re.search(r"Default: ([^;,]+?)(?:,.*)?\.$", field.description)
    assert documented, f"{name}: no default in the description"
    text = documented[1]
    if default is None or text.endswith("here"):
        return
    assert text in (str(default).lower(), str(default)), f"{name}: {text}, but {default}"


def test_train_settings_are_accepted_by_ultralytics() -> None:
    from ultralytics.cfg import get_cfg

    given = {
        "epochs": 3,
        "lr0": 0.004,
        "mosaic": 0.0,
        "scale": [0.1, 0.2],
        "freeze": [0, 1],
        "cache": "ram",
        "classes": [1],
    }
    settings = TrainSettings.model_validate(given)
    cfg = get_cfg(overrides={**settings.model_dump(exclude_none=True), "amp": False})
    assert cfg.lr0 == 0.004
    assert cfg.classes == [1]
