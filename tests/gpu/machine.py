"""Describes the machine on which the checks run."""

from __future__ import annotations

import shutil
from importlib.metadata import version

import cv2
import torch
from yolojob_trainer.system import host

from gpu.scale import scale
from gpu.table import Row, figure, verdict


def machine() -> list[Row]:
    """Describe the machine."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts = host.describe(device)
    shared = shutil.disk_usage("/dev/shm").free / 2**30
    names = ("torch", "torchvision", "numpy", "ultralytics")
    versions = ", ".join([f"python {facts.python}", *(f"{name} {version(name)}" for name in names)])
    needs_gpu = scale().gpu
    found = bool(facts.gpu) or not needs_gpu
    return [
        figure("machine", f"{facts.gpu or 'no GPU'}, {facts.cores} cores ({facts.cpu}), /dev/shm {shared:.0f} GiB"),
        figure("versions", f"{versions}, OpenCV {cv2.__version__}"),
        verdict("GPU", facts.gpu or "none", "a GPU" if needs_gpu else "not used", found),
    ]
