"""CRDs of other projects, against which tests hold our objects."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support import ROOT


def crds(name: str) -> Path:
    folder = os.environ.get("YOLOJOB_TEST_CRDS")
    if folder is None:
        reason = "YOLOJOB_TEST_CRDS does not name a folder with the CRDs of Volcano and scheduler-plugins"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return ROOT / folder / name
