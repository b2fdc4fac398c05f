"""CRDs of other projects, against which tests validate the operator's objects."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support import ROOT


def crds(name: str) -> Path:
    """The file of a CRD; the test is skipped, in CI failed, where there are no such files."""
    folder = os.environ.get("YOLOJOB_TEST_CRDS")
    if folder is None:
        reason = "YOLOJOB_TEST_CRDS does not name a folder with the CRDs of Volcano and scheduler-plugins"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return ROOT / folder / name
