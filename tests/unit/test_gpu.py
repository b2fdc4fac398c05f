"""What differs on GPUs, as far as a CPU can show it."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from yolojob_trainer.system import compiler, gpu
from yolojob_trainer.system.shared_memory import loader_limit
from yolojob_trainer.training.losses import EpochLosses

pytestmark = pytest.mark.torch
ALONE: Any = SimpleNamespace(sum=lambda values: values)
"""A world with one rank."""


def losses(*values: float, scale: float | None = 65536.0) -> EpochLosses:
    """Returns the losses of an epoch with one microbatch of two images for each value."""
    result = EpochLosses(None if scale is None else lambda: scale)
    for value in values:
        result.add({"box": torch.tensor(value), "cls": torch.tensor(1.0)}, 2)
    result.read()
    return result


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_single_overflow_of_fp16_is_left_out(bad: float) -> None:
    epoch = losses(2.0, bad, 4.0)
    assert not epoch.diverged
    assert epoch.value == pytest.approx(4.0)
    assert epoch.mean(ALONE) == {"box": pytest.approx(3.0), "cls": pytest.approx(1.0)}


def test_overflows_that_use_up_the_scale_are_a_divergence() -> None:
    assert not losses(1.0, *[math.inf] * 40, scale=1.0).diverged
    assert losses(1.0, *[math.inf] * 40, scale=0.5).diverged


def test_epoch_of_overflows_only_has_no_loss() -> None:
    assert all(math.isnan(value) for value in losses(math.inf).mean(ALONE).values())


def test_other_formats_tolerate_no_overflow() -> None:
    assert losses(1.0, math.inf, scale=None).diverged


def test_losses_are_the_same_with_and_without_scaling() -> None:
    values = torch.rand(20, generator=torch.Generator().manual_seed(0)).tolist()
    assert losses(*values).mean(ALONE) == losses(*values, scale=None).mean(ALONE)


def test_loader_processes_fit_in_shared_memory() -> None:
    batch = 128 * 3 * 640**2
    assert loader_limit(batch, 4, 64 << 20) == 0, "the default of a container runtime"
    assert 1 <= loader_limit(batch, 4, 8 << 30) < 8
    assert loader_limit(batch, 4, 64 << 30) >= 8
    assert loader_limit(batch, 8, 8 << 30) < loader_limit(batch, 4, 8 << 30)


def test_utilization_is_read_at_most_every_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now, reads = [100.0], [0]

    def utilization(_: object) -> int:
        reads[0] += 1
        return 50

    monkeypatch.setattr(torch.cuda, "utilization", utilization)
    monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=lambda: now[0]))
    reader = gpu.UtilizationReader(torch.device("cuda", 0))
    for _ in range(40):
        assert reader.read() == 0.5
        now[0] += 0.1
    assert reads[0] == 2
    assert gpu.UtilizationReader(torch.device("cpu")).read() == 0.0


@pytest.mark.parametrize(("found", "expected"), [("gcc", True), ("clang", True), ("nothing", False), ("/x/cc", True)])
def test_compiler_is_found(monkeypatch: pytest.MonkeyPatch, found: str, expected: bool) -> None:
    monkeypatch.setattr("yolojob_trainer.system.compiler.shutil.which", lambda name: name if name == found else None)
    monkeypatch.setenv("CC", "/x/cc")
    assert compiler.has_c_compiler() is expected
