"""Reads and prepares the environment variables of a worker.

This module must be imported before torch and Ultralytics, which read the environment when they are imported.
"""

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
    """Return the number of steps to record in a Chrome trace.

    Raises:
        BadInput: the variable is not a number.
    """
    text = os.environ.get(constants.ENV_TRACE_STEPS) or "0"
    if not text.isdigit():
        raise BadInput(Reason.INVALID_ENVIRONMENT, f"{constants.ENV_TRACE_STEPS}: {text!r}: must be a number of steps")
    return int(text)


def mode() -> constants.Mode:
    """Return the mode of this process.

    Raises:
        BadInput: the variable is not the name of a mode.
    """
    text = os.environ.get(constants.ENV_MODE) or constants.Mode.TRAIN
    if text not in list(constants.Mode):
        known = ", ".join(constants.Mode)
        raise BadInput(Reason.INVALID_ENVIRONMENT, f"{constants.ENV_MODE}: {text!r}: must be one of {known}")
    return constants.Mode(text)


def bench_seconds() -> float:
    """Return the time for the measurements of a bench.

    Raises:
        BadInput: the variable is not a positive number.
    """
    text = os.environ.get(constants.ENV_BENCH_SECONDS) or "45"
    if not text.isdigit() or not int(text):
        raise BadInput(
            Reason.INVALID_ENVIRONMENT, f"{constants.ENV_BENCH_SECONDS}: {text!r}: must be a number of seconds"
        )
    return float(text)


def prepare() -> None:
    """Keep Ultralytics from using the network and from running code in data, and set the folder that it may write
    to.
    """
    config = cache_dir() / "config"
    try:
        config.mkdir(parents=True, exist_ok=True)
    except OSError:
        config = Path(tempfile.mkdtemp(prefix="yolojob-"))
    # Batches differ in the sizes of the loss's tensors, which fragment the memory of a GPU.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    os.environ.update(
        YOLO_OFFLINE="1",
        YOLO_AUTOINSTALL="0",
        YOLO_VERBOSE="false",
        ULTRALYTICS_SAFE_LOAD="1",
        YOLO_CONFIG_DIR=str(config),
        MPLCONFIGDIR=str(config),
        MPLBACKEND="Agg",
    )
