"""Predictions by the roofline model, for machines of the catalogue."""

from __future__ import annotations

from typing import Any

import pytest
from support.bench_data import DATA, MODEL_PROFILE, estimator, job, measurement, record

from yolojob.api.time_parts import TimePart
from yolojob.catalogue import machines
from yolojob.estimation import prediction, roofline
from yolojob.estimation.assumptions import Assumptions
from yolojob.estimation.estimate import Basis
from yolojob.estimation.target import Target


def predict(machine: str, workers: int = 1, **spec: Any) -> prediction.Prediction:
    """Returns the prediction for the job of `bench_data` on a machine of the built-in catalogue."""
    catalogue = machines.builtin()
    row = catalogue.machine(machine)
    model = roofline.RooflineModel(
        spec=job(**spec).spec, model_profile=MODEL_PROFILE, data=DATA, assumptions=Assumptions()
    )
    return model.predict(row, catalogue.accelerators[row.gpu], workers)


def test_roofline_with_better_gpu_is_not_slower() -> None:
    names = ("g4dn.xlarge", "g5.xlarge", "a2-highgpu-1g", "a3-highgpu-8g")
    times = [predict(name).parts[TimePart.FORWARD].value for name in names]
    assert times == sorted(times, reverse=True)


def test_roofline_has_basis_predicted_and_a_wide_interval() -> None:
    predicted = predict("g2-standard-4")
    assert predicted.total.basis is Basis.PREDICTED
    assert predicted.total.high > 1.5 * predicted.total.value


def test_roofline_with_few_cpus_is_limited_by_data() -> None:
    assert predict("g2-standard-4", train={"epochs": 300, "batch": 64, "imgsz": 1280}).limit == "waiting for data"


def test_roofline_with_too_large_batch_states_the_missing_memory() -> None:
    large = MODEL_PROFILE.model_copy(update={"activation_bytes": 2 << 30})
    catalogue = machines.builtin()
    row = catalogue.machine("g4dn.xlarge")
    model = roofline.RooflineModel(spec=job().spec, model_profile=large, data=DATA, assumptions=Assumptions())
    with pytest.raises(roofline.DoesNotFit, match=r"batch 16 needs 40.0 GiB in each GPU, 25.9 GiB more.*fits is 5"):
        model.predict(row, catalogue.accelerators["T4"], workers=1)


def test_roofline_with_bench_on_another_gpu_is_scaled() -> None:
    host = measurement().host.model_copy(update={"gpu": "NVIDIA L4", "gpus": 1})
    g5 = Target(text="g5.xlarge", machine="g5.xlarge")
    with_bench = estimator(record("cluster", host=host)).option(g5)
    without_bench = estimator().option(g5)
    assert with_bench.predicted.parts[TimePart.FORWARD].basis is Basis.SCALED
    assert without_bench.predicted.parts[TimePart.FORWARD].basis is Basis.PREDICTED
