"""The defaults of Ultralytics' settings, without importing Ultralytics and torch, which takes seconds."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml


@cache
def ultralytics_defaults() -> dict[str, Any]:
    """Returns the content of the installed package's default.yaml."""
    spec = find_spec("ultralytics")
    assert spec is not None
    assert spec.origin is not None
    return dict(yaml.safe_load((Path(spec.origin).parent / "cfg" / "default.yaml").read_text(encoding="utf-8")))
