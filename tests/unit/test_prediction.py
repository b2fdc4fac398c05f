"""Predictions from a bench: arithmetic that can be checked by hand, and properties that always hold."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.bench_data import MODEL_PROFILE, PLAIN_STEP, job, measurement

from yolojob.api.measurement import Link, MicrobatchPass, Steps
from yolojob.api.time_parts import TimePart
from yolojob.estimation import prediction
from yolojob.estimation.estimate import Basis
from yolojob.estimation.recommendation import flattening


def predict(workers: int = 1, shared: bool = True, **facts: Any) -> prediction.Prediction:
    """Returns the prediction for the job of `bench_data`, with staged data.

    Args:
        workers: number of workers.
        shared: whether they share one machine.
        facts: fields of the measurement.
    """
    return prediction.predict_from_bench(
        job().spec, measurement(**facts), prediction.WorkerSetup(workers=workers, shared=shared, cached=True)
    )


def test_prediction_of_measured_job_adds_up_its_parts() -> None:
    """20 epochs of 25 steps, 10 of them with mosaic."""
    predicted = predict()
    plain, mosaic = sum(PLAIN_STEP.values()), sum(PLAIN_STEP.values()) + 0.02
    expected = 250 * plain + 250 * mosaic + 500 * 0.01 + 20 * (0.5 + 0.1 + 0.02) + 3.0
    assert predicted.total.value == pytest.approx(expected)
    assert predicted.parts[TimePart.DATA_WAIT].value == pytest.approx(250 * 0.01 + 250 * 0.03)
    assert predicted.total.basis is Basis.MEASURED
    assert predicted.total.low < expected < predicted.total.high
    assert predicted.limit == "computing"


def test_prediction_without_staged_data_adds_staging() -> None:
    cold = prediction.predict_from_bench(
        job().spec, measurement(), prediction.WorkerSetup(workers=1, shared=False, cached=False)
    )
    assert cold.total.value == pytest.approx(predict().total.value + 2.0)


def test_prediction_of_two_workers_on_one_machine_uses_the_shared_passes() -> None:
    predicted = predict(2)
    compute = 0.085 * 0.072 / 0.084  # half of the images, while another process computes
    assert predicted.parts[TimePart.FORWARD].value == pytest.approx(500 * 0.03 * compute / 0.085)
    assert predicted.parts[TimePart.DATA_WAIT].value == pytest.approx(predict().parts[TimePart.DATA_WAIT].value / 2)
    ring = 2 / 2 * 4 * MODEL_PROFILE.parameters / 1e9 + 1e-4
    waiting = 0.5642 * 0.01  # the larger of two normal variates is 1 / sqrt(pi) of their deviation above the mean
    assert predicted.parts[TimePart.ALL_REDUCE].value == pytest.approx(500 * (ring + waiting), rel=0.05)
    assert predicted.parts[TimePart.VALIDATION].value == pytest.approx(20 * 0.5), "the same work on the same CPUs"
    assert predicted.parts[TimePart.STARTUP].value == pytest.approx(3.0 * 1.6)
    assert predicted.total.basis is Basis.SCALED


def test_prediction_of_two_workers_on_two_machines_uses_the_unshared_passes() -> None:
    apart = predict(2, shared=False)
    assert apart.parts[TimePart.FORWARD].value == pytest.approx(500 * 0.03 * 0.048 / 0.084)
    assert apart.total.value < predict(2).total.value


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(1, 8))
def test_prediction_with_more_workers_never_has_longer_passes(few: int, more: int) -> None:
    few, more = sorted((few, more))
    fewer_workers, more_workers = predict(few, shared=False), predict(more, shared=False)
    assert more_workers.parts[TimePart.BACKWARD].value <= fewer_workers.parts[TimePart.BACKWARD].value * (1 + 1e-9)


def test_prediction_without_half_batch_passes_scales_by_images() -> None:
    predicted = predict(2, shared=False, microbatch_passes=[MicrobatchPass(images=16, seconds=0.084)])
    assert predicted.parts[TimePart.FORWARD].value == pytest.approx(500 * 0.03 / 2)


def test_prediction_from_noisy_bench_has_a_wider_interval() -> None:
    noisy = [Steps(with_mosaic=False, count=10, seconds=PLAIN_STEP, deviation=0.05)]
    calm = [Steps(with_mosaic=False, count=10, seconds=PLAIN_STEP, deviation=0.001)]
    wide, narrow = predict(steps=noisy).total, predict(steps=calm).total
    assert wide.high - wide.low > narrow.high - narrow.low


def test_flattening_with_slow_link_names_the_all_reduce() -> None:
    slow = Link(between="workers", latency_seconds=0.05, bytes_per_second=1e8)
    scaling = {workers: predict(workers, shared=False, link=slow) for workers in (1, 8)}
    assert "gradients must be reduced" in flattening(scaling)
