"""Parameters, operations and memory of a model, compared with Ultralytics and with a real training step."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from ultralytics.nn.tasks import DetectionModel
from yolojob_trainer.model.profile import profile_model

pytestmark = pytest.mark.processes


def test_profile_counts_operations_as_ultralytics_does() -> None:
    """yolo11n has 2.6 million parameters and 6.5 GFLOPs at 640 pixels (docs.ultralytics.com/models/yolo11)."""
    result = profile_model(DetectionModel("yolo11n.yaml", verbose=False), 640, torch.float32)
    assert result.parameters == pytest.approx(2.6e6, rel=0.02)
    assert result.gflops == pytest.approx(6.5, rel=0.05)


TRAIN_16 = """
import resource, torch
from ultralytics.nn.tasks import DetectionModel
from yolojob_trainer.model.profile import profile_model

torch.set_num_threads(1)
model = DetectionModel("yolo11n.yaml", verbose=False)
result = profile_model(model, 320, torch.float32)
model.train()
before = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
out = model(torch.rand(16, 3, 320, 320))
sum(t.sum() for value in out.values() for t in (value if isinstance(value, list) else [value])).backward()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(result.memory(16) - result.memory(0), peak - before)
"""
"""Prints the predicted and the real memory of a training step with 16 images, in bytes."""


def test_profile_predicts_the_memory_of_a_training_step() -> None:
    """The real value is the growth of the process, as the kernel counts it."""
    done = subprocess.run([sys.executable, "-c", TRAIN_16], capture_output=True, text=True, check=True)
    predicted, real = map(float, done.stdout.split())
    assert 0.9 * real < predicted < 1.4 * real, (predicted / 2**20, real / 2**20)
