"""The process environment of a worker. Imported before torch and Ultralytics, which read it when they are imported."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from yolojob.api import constants
from yolojob.api.reasons import Reason
from yolojob_trainer.errors import BadInput


def folder(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable) or default).expanduser().absolute()


def cache_dir() -> Path:
    return folder(constants.ENV_CACHE_DIR, "~/.cache/yolojob")


def volumes_dir() -> Path:
    return folder(constants.ENV_VOLUMES_DIR, "volumes")


def output_dir() -> Path:
    return folder(constants.ENV_OUTPUT_DIR, "runs/run")


def chrome_steps() -> int:
    """Steps for the Chrome trace.

    Raises:
        BadInput: the variable is no number.
    """
    text = os.environ.get(constants.ENV_TRACE_STEPS) or "0"
    if not text.isdigit():
        raise BadInput(Reason.INVALID_ENVIRONMENT, f"{constants.ENV_TRACE_STEPS}: {text!r}: must be a number of steps")
    return int(text)


def mode() -> constants.Mode:
    """What this process is for.

    Raises:
        BadInput: the variable is none of the modes.
    """
    text = os.environ.get(constants.ENV_MODE) or constants.Mode.TRAIN
    if text not in list(constants.Mode):
        known = ", ".join(constants.Mode)
        raise BadInput(Reason.INVALID_ENVIRONMENT, f"{constants.ENV_MODE}: {text!r}: must be one of {known}")
    return constants.Mode(text)


def bench_seconds() -> float:
    """Time for the measurements of a bench.

    Raises:
        BadInput: the variable is no number.
    """
    text = os.environ.get(constants.ENV_BENCH_SECONDS) or "45"
    if not text.isdigit() or not int(text):
        raise BadInput(
            Reason.INVALID_ENVIRONMENT, f"{constants.ENV_BENCH_SECONDS}: {text!r}: must be a number of seconds"
        )
    return float(text)


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
