"""The size of everything: for a GPU, and for a run of the same checks on a CPU, which tests the checks."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from yolojob_trainer.system.process import available_cpus

ON_CPU = "GPU_CHECKS_ON_CPU"
"""Environment variable: 1 to run without a GPU."""
WORK_FOLDER = "GPU_CHECKS_FOLDER"
"""Environment variable: folder for datasets, trainings and caches."""
MAX_LOADERS = 16
"""Processes that load images, as many as a GPU machine usually has cores for each GPU."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Sizes of networks, data and measurements."""

    gpu: bool
    network: dict[str, Any]
    """spec.model of the measurements of speed."""
    imgsz: int
    fixed_batches: tuple[int, ...]
    """Batches of the measurements with one fixed batch; the first one is also profiled."""
    training_batches: tuple[int, ...]
    """Batches of whole trainings."""
    images: int
    """Images of the synthetic dataset."""
    different_images: int
    """The others are further names of these."""
    epochs: int
    loaders: int
    steps: int
    """Timed steps with a fixed batch."""
    loading_seconds: float
    """Duration of a measurement of the loaders."""
    digits_epochs: int
    digits_fraction: float
    """Images of the digits, or 1.0 for all."""
    digits_imgsz: int
    digits_network: dict[str, Any]
    recipes: int
    """Samples that are rendered on the device and on the CPU, and compared."""
    timeout_seconds: float
    """For one training."""
    patience: float
    """Factor of all times within which something must happen: other programs may use the CPU."""


@cache
def scale() -> Scale:
    if os.environ.get(ON_CPU) == "1":
        tiny = {"name": "yolo11n.yaml", "scale": [0.33, 0.0625, 128]}
        return Scale(
            gpu=False,
            network=tiny,
            imgsz=64,
            fixed_batches=(4,),
            training_batches=(4,),
            images=24,
            different_images=24,
            epochs=3,
            loaders=1,
            steps=4,
            loading_seconds=1.0,
            digits_epochs=2,
            digits_fraction=128.0,
            digits_imgsz=32,
            digits_network=tiny,
            recipes=8,
            timeout_seconds=500.0,
            patience=5.0,
        )
    return Scale(
        gpu=True,
        network={"name": "yolo26n.yaml"},
        imgsz=640,
        fixed_batches=(64, 16, 128),
        training_batches=(64, 128),
        images=3072,
        different_images=768,
        epochs=3,
        loaders=min(available_cpus(), MAX_LOADERS),
        steps=40,
        loading_seconds=5.0,
        digits_epochs=12,
        digits_fraction=1.0,
        digits_imgsz=128,
        digits_network={"name": "yolo11n.yaml", "scale": [0.33, 0.125, 256]},
        recipes=256,
        timeout_seconds=140.0,
        patience=1.0,
    )


def work_folder() -> Path:
    return Path(os.environ[WORK_FOLDER])


def dataset_folder() -> Path:
    return work_folder() / "data"


def cache_folder() -> Path:
    return work_folder() / "cache"
