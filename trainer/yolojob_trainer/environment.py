"""The process environment of a worker. Imported before torch and Ultralytics, which read it when they are imported."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from yolojob import contract


def folder(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable) or default).expanduser().absolute()


def cache_dir() -> Path:
    return folder(contract.ENV_CACHE_DIR, "~/.cache/yolojob")


def volumes_dir() -> Path:
    return folder(contract.ENV_VOLUMES_DIR, "volumes")


def output_dir() -> Path:
    return folder(contract.ENV_OUTPUT_DIR, "runs/run")


def prepare() -> None:
    """Keep Ultralytics off the network and away from code in data; give it a place to write."""
    config = cache_dir() / "config"
    try:
        config.mkdir(parents=True, exist_ok=True)
    except OSError:
        config = Path(tempfile.mkdtemp(prefix="yolojob-"))
    os.environ.update(
        YOLO_OFFLINE="1",
        YOLO_AUTOINSTALL="0",
        YOLO_VERBOSE="false",
        ULTRALYTICS_SAFE_LOAD="1",
        YOLO_CONFIG_DIR=str(config),
        MPLCONFIGDIR=str(config),
        MPLBACKEND="Agg",
    )
