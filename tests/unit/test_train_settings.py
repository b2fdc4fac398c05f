"""The typed list of Ultralytics' training settings, compared with the package."""

from __future__ import annotations

import re
from typing import Any

import pytest
from support.ultralytics_defaults import ultralytics_defaults

from yolojob.api.train_settings import OWN_SETTINGS, REPLACED, TrainSettings

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
    assert known - upstream - {"resume", *OWN_SETTINGS} == set(), "Ultralytics has removed a setting"
    assert upstream.isdisjoint(OWN_SETTINGS), "Ultralytics has added a setting with this name"


@pytest.mark.parametrize("name", sorted(set(TrainSettings.model_fields) - CHANGED_BY_YOLOJOB - set(OWN_SETTINGS)))
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


@pytest.mark.parametrize(
    ("train", "validated"),
    [
        ({"epochs": 4}, [0, 1, 2, 3]),
        ({"epochs": 6, "val_period": 2}, [1, 3, 5]),
        ({"epochs": 7, "val_period": 3}, [2, 5, 6]),
        ({"epochs": 2, "val_period": 5}, [1]),
        ({"epochs": 4, "val": False, "val_period": 2}, [3]),
    ],
)
def test_validations_follow_every_period_and_the_last_epoch(train: dict[str, Any], validated: list[int]) -> None:
    settings = TrainSettings.model_validate(train)
    assert [epoch for epoch in range(settings.epochs) if settings.validates(epoch)] == validated
    for start in range(settings.epochs + 1):
        assert settings.validations(start) == sum(epoch >= start for epoch in validated)
