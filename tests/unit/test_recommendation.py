"""The choice between places: Pareto front, recommendation, and the break-even of buying."""

from __future__ import annotations

from typing import Any

from support.bench_data import POWER, estimator, record

from yolojob.api.time_parts import TimePart
from yolojob.estimation import billing, prediction
from yolojob.estimation.assumptions import Assumptions
from yolojob.estimation.billing import BillPart
from yolojob.estimation.option import Option
from yolojob.estimation.recommendation import break_even, pareto, recommend
from yolojob.estimation.target import Target


def place(name: str, seconds: float, cost: float | None, stays: bool = True) -> Option:
    """Returns a place with a given time and cost.

    Args:
        name: name of the place.
        seconds: duration of the training.
        cost: in USD; without a price if none.
        stays: whether the data stay on this machine.
    """
    template = estimator(record("c", per_worker_hour=1.0, currency="USD")).option(Target(text="c", context="c"))
    time = template.predicted.parts[TimePart.FORWARD].model_copy(
        update={"value": seconds, "low": seconds, "high": seconds}
    )
    predicted = prediction.Prediction(
        workers=1, parts={TimePart.FORWARD: time}, images_per_second=1.0, limit="computing"
    )
    bill = billing.Bill(
        currency="USD",
        parts={BillPart.MACHINES: time.times((cost or 0.0) / seconds)},
        price_source=f"price of {name}",
        per_hour=None if cost is None else 1.0,
    )
    target = Target(text=name, context=name)
    return Option(target=target, name=name, predicted=predicted, bill=bill, power=None, stays=stays)


def test_pareto_keeps_places_that_no_other_beats() -> None:
    places = [place("a", 100, 5), place("b", 200, 1), place("c", 300, 2), place("d", 100, 6), place("e", 50, None)]
    assert [option.name for option in pareto(places)] == ["a", "b"]


def test_recommend_names_the_cheapest_and_the_fastest() -> None:
    text = recommend([place("a", 100, 5), place("b", 200, 1)], Assumptions())
    assert text.startswith(
        "Take b to save money (3.3 min, 1.00 USD), or a to save 100 s for 4.00 USD more (100 s, 5.00 USD)"
    )
    assert "price of a" in text
    assert "price of b" in text


def test_recommend_reports_places_without_price() -> None:
    text = recommend([place("a", 100, 5), place("e", 50, None)], Assumptions())
    assert "not considered for lack of a price: e" in text
    assert "the cheapest is unknown" in recommend([place("e", 50, None)], Assumptions())


def test_recommend_with_data_that_must_stay_excludes_other_places() -> None:
    places = [place("here", 500, 9), place("there", 5, 1, stays=False)]
    assert recommend(places, Assumptions()).startswith("Take there")
    text = recommend(places, Assumptions(must_stay_here=True))
    assert text.startswith("Take here")
    assert "must stay at this site" in text
    assert "None of these" in recommend(places[1:], Assumptions(must_stay_here=True))


def test_break_even_is_where_both_curves_have_the_same_cost() -> None:
    assumed: dict[str, Any] = {"purchasePrice": 1000.0}
    measured = estimator(record(energy=POWER), assumed=assumed)
    machine = Target(text="gke:g2-standard-4", machine="g2-standard-4")
    options = [measured.option(Target(text="local")), measured.option(machine)]
    result = break_even(options, measured.assumptions)
    assert result is not None
    buy, rent = result.curves["buy (local)"], result.curves["rent g2-standard-4 (gke)"]
    first = next(i for i in range(41) if rent[i] >= buy[i])
    trainings = result.trainings
    crossing = float(result.summary.split("from ")[1].split(" trainings")[0])
    assert trainings[first - 1] <= crossing <= trainings[first] + 0.1


def test_break_even_without_purchase_price_is_none() -> None:
    measured = estimator(record(energy=POWER))
    machine = Target(text="gke:g2-standard-4", machine="g2-standard-4")
    assert break_even([measured.option(Target(text="local")), measured.option(machine)], Assumptions()) is None
