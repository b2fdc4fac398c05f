"""Our typed list of Ultralytics' training settings, held against the package."""

from __future__ import annotations

import re

import pytest
from ultralytics.cfg import DEFAULT_CFG_DICT

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
OURS_ALONE = {"amp"}


def test_every_setting_is_there_or_accounted_for() -> None:
    known = {*TrainSettings.model_fields, *REPLACED, *PREDICT, *EXPORT, *VALIDATE, "retina_masks"}
    assert set(DEFAULT_CFG_DICT) - known == set(), "new in the package"
    assert known - set(DEFAULT_CFG_DICT) - {"resume"} == set(), "gone from the package"


@pytest.mark.parametrize("name", sorted(set(TrainSettings.model_fields) - OURS_ALONE))
def test_the_default_in_the_text_is_the_packages_own(name: str) -> None:
    field = TrainSettings.model_fields[name]
    default = DEFAULT_CFG_DICT[name]
    if field.default is not None:
        assert field.default == default
        return
    assert field.description
    said = re.search(r"Default: ([^;,]+?)(?:,.*)?\.$", field.description)
    assert said, f"{name}: says no default"
    words = said[1]
    if default is None or words.endswith("here"):
        return
    assert words == str(default).lower() or words == str(default), f"{name}: {words}, but {default}"


def test_every_setting_reaches_the_package() -> None:
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
