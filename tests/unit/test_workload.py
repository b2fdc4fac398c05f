"""Counts of steps and epochs of a job, compared with the trainer's own arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import minimal
from support.bench_data import job
from support.ultralytics_defaults import ultralytics_defaults

from yolojob.api.job import YoloTrainingJob
from yolojob.api.spec import YoloTrainingJobSpec
from yolojob.estimation import workload


def trained_updates(spec: YoloTrainingJobSpec, images: int) -> int:
    """Returns the number of optimizer steps, counted step by step as the trainer makes them."""
    train = spec.train
    steps = -(-images // train.batch)
    nominal = min(max(round((train.nbs or 64) / train.batch), 1), steps * train.epochs)
    warmup = round(min(3.0 if train.warmup_epochs is None else train.warmup_epochs, max(train.epochs - 1, 0)) * steps)
    accumulate, updates = nominal, 0
    for epoch in range(train.epochs):
        boundary = 0
        for step in range(steps):
            trained = step + steps * epoch
            if warmup and trained <= warmup:
                accumulate = max(1, round(float(np.interp(trained, [0, warmup], [1, nominal]))))
            if step + 1 - boundary >= accumulate or step + 1 == steps:
                updates, boundary = updates + 1, step + 1
    return updates


@settings(deadline=None)
@given(
    epochs=st.integers(1, 12),
    batch=st.integers(1, 64),
    nbs=st.sampled_from([None, 1, 16, 64, 200]),
    warmup=st.sampled_from([None, 0.0, 0.5, 3.0, 20.0]),
    images=st.integers(1, 500),
)
def test_count_workload_counts_the_trainers_optimizer_steps(
    epochs: int, batch: int, nbs: int | None, warmup: float | None, images: int
) -> None:
    optional = {"nbs": nbs, "warmup_epochs": warmup}
    train = {"epochs": epochs, "batch": batch, **{k: v for k, v in optional.items() if v is not None}}
    spec = YoloTrainingJob.model_validate(minimal(train=train)).spec
    assert workload.count_workload(spec, images).updates == trained_updates(spec, images)


@pytest.mark.parametrize(
    ("train", "mosaic"),
    [
        ({"epochs": 20}, 10),
        ({"epochs": 5}, 0),
        ({"epochs": 20, "close_mosaic": 0}, 20),
        ({"epochs": 20, "mosaic": 0.0}, 0),
        ({"epochs": 20, "mosaic": 0.0, "mixup": 0.1}, 10),
    ],
)
def test_count_workload_counts_epochs_with_mosaic(train: dict[str, Any], mosaic: int) -> None:
    assert workload.count_workload(job(train=train).spec, 100).mosaic_epochs == mosaic


@pytest.mark.torch
def test_workload_defaults_are_those_of_ultralytics() -> None:
    expected = {
        "close_mosaic": workload.CLOSE_MOSAIC,
        "warmup_epochs": workload.WARMUP_EPOCHS,
        "nbs": workload.NOMINAL_BATCH,
        **workload.MIXES,
    }
    assert {name: ultralytics_defaults()[name] for name in expected} == expected
