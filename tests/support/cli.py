"""Runs the command line in a process, and builds small jobs for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from support import minimal

COMMAND = [sys.executable, "-m", "yolojob.cli"]
QUICK = {"epochs": 2, "batch": 8, "imgsz": 64, "nbs": 8, "fraction": 40, "mosaic": 0.0}
"""Training settings for a run of a few seconds."""


def manifest(folder: Path, document: dict[str, Any]) -> Path:
    """Writes a manifest as `job.yaml` in a folder, and returns its path."""
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def small(name: str = "small", **spec: Any) -> dict[str, Any]:
    """Returns a manifest with a very small model that trains for a few seconds."""
    model = {"name": "yolo11n.yaml", "scale": [0.33, 0.0625, 256]}
    return minimal(name, **{"model": model, "train": QUICK, **spec})


def call(folder: Path, cache: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in a folder and returns its exit code and output.

    Raises:
        AssertionError: the output contains a traceback.
    """
    env = {**os.environ, "YOLOJOB_CACHE_DIR": str(cache), "COLUMNS": "200", **environment}
    if arguments[0] == "run":
        # With more threads than free CPUs, training processes wait actively for each other and take much longer.
        env.setdefault("YOLOJOB_CPUS", "1")
    command = [*COMMAND, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert "Traceback" not in done.stderr + done.stdout
    return done
