"""Costs and energy of a training, computed again by other means."""

from __future__ import annotations

from typing import Any

import pytest
from support.bench_data import POWER, estimator, job, measurement, record

from yolojob.api.time_parts import TimePart
from yolojob.estimation import billing, prediction
from yolojob.estimation.assumptions import Assumptions
from yolojob.estimation.billing import BillPart
from yolojob.estimation.option import cost_text, option_json
from yolojob.estimation.target import Target

LOCAL = Target(text="local")
CLUSTER = Target(text="cluster", context="cluster")
L4 = Target(text="gke:g2-standard-4", machine="g2-standard-4")


def predicted() -> prediction.Prediction:
    """Returns the prediction for two workers on two machines."""
    return prediction.predict_from_bench(
        job().spec, measurement(), prediction.WorkerSetup(workers=2, shared=False, cached=True)
    )


def test_rented_machines_cost_price_times_running_time_of_each_worker() -> None:
    times = predicted()
    price = billing.RentalPrice(per_worker_hour=3.6, currency="EUR", source="a price list")
    bill = billing.bill_rented(times, job().spec, Assumptions(), price, dataset_bytes=None)
    assert bill.parts[BillPart.MACHINES].value == pytest.approx(2 * 3.6 * times.running.value / 3600)
    assert bill.total is not None
    assert bill.total.value == pytest.approx(sum(part.value for part in bill.parts.values()))


def test_bill_excludes_the_time_in_the_queue() -> None:
    queued = estimator(record("cluster", waits={"queued": 1000.0}, per_worker_hour=1.0, currency="USD"))
    unqueued = estimator(record("cluster", per_worker_hour=1.0, currency="USD"))
    slow, fast = queued.option(CLUSTER), unqueued.option(CLUSTER)
    assert slow.seconds == pytest.approx(fast.seconds + 1000)
    assert slow.cost == pytest.approx(fast.cost)


def test_bill_without_price_has_no_total() -> None:
    """A missing price is never shown as 0."""
    option = estimator(record("cluster")).option(CLUSTER)
    assert option.cost is None
    assert cost_text(option.bill.total, "USD") == "no price"
    assert option_json(option)["cost"] is None
    assert "set spec.pricing.perWorkerHour" in option.bill.price_source


def test_bill_of_local_machine_without_power_counter_has_no_price() -> None:
    option = estimator(record()).option(LOCAL)
    assert option.cost is None
    assert "--assume watts" in option.bill.price_source


def test_bill_of_own_machine_is_electricity_and_depreciation() -> None:
    measured = estimator(
        record(energy=POWER),
        assumed={"electricityPrice": 0.5, "purchasePrice": 2628.0, "years": 2.0, "utilisation": 0.5, "pue": 1.5},
    )
    option = measured.option(LOCAL)
    hours = option.seconds / 3600
    assert option.power is not None
    assert option.power.kwh.value == pytest.approx(0.1 * 1.5 * hours)
    assert option.bill.parts[BillPart.ELECTRICITY].value == pytest.approx(0.1 * 1.5 * hours * 0.5)
    assert option.bill.parts[BillPart.MACHINES].value == pytest.approx(2628 / 8760 * hours)


def test_repeated_work_of_interruption_is_half_a_checkpoint_interval_and_a_start() -> None:
    spec = job(checkpoint={"everyEpochs": 1, "everySeconds": 300}, pricing={"spot": True}).spec
    times = predicted()
    epoch = times.running.value / 20
    start = times.parts[TimePart.STARTUP].value + times.parts[TimePart.STAGING].value
    expected = 2 * times.running.value / 3600 * (epoch / 2 + start)
    repeated = billing.repeated_work_seconds(times, spec, Assumptions(interruptions_per_hour=1.0))
    assert repeated.value == pytest.approx(expected)


def test_bill_of_spot_machine_uses_spot_price_or_assumed_discount() -> None:
    spec: dict[str, Any] = {"pricing": {"spot": True}}
    spot = estimator(**spec).option(L4)
    assert spot.bill.per_hour == pytest.approx(0.424)
    assert BillPart.REPEATED_WORK in spot.bill.parts
    t4 = Target(text="g4dn.xlarge", machine="g4dn.xlarge")
    assert estimator(**spec).option(t4).bill.per_hour == pytest.approx(0.526)
    assert "no spot price is known" in estimator(**spec).option(t4).bill.price_source
    assert estimator(assumed={"spotDiscount": 0.6}, **spec).option(t4).bill.per_hour == pytest.approx(0.526 * 0.4)
