"""Bills, energy, choices: recomputed here by other means."""

from __future__ import annotations

from typing import Any

import pytest
from support.bench_data import WATTS, job, measurement, record, survey

from yolojob.catalogue import machines
from yolojob.catalogue.machines import InvalidCatalogue, UnknownMachine
from yolojob.estimation import assumptions, billing, prediction, target
from yolojob.estimation.assumptions import Assumptions, InvalidAssumption
from yolojob.estimation.estimator import CannotEstimate
from yolojob.estimation.option import Option, cost_text, option_json
from yolojob.estimation.recommendation import break_even, pareto, recommend
from yolojob.estimation.target import Target, UnknownTarget

LOCAL = Target(text="local")
L4 = Target(text="gke:g2-standard-4", machine="g2-standard-4")


def predicted() -> prediction.Prediction:
    return prediction.predict_from_bench(job().spec, measurement(), workers=2, shared=False, cached=True)


class TestBills:
    def test_machines_are_price_times_running_time_of_each(self) -> None:
        found = predicted()
        bill = billing.rented(
            found, job().spec, Assumptions(), per_worker_hour=3.6, currency="EUR", words="told", dataset_bytes=None
        )
        assert bill.parts["machines"].value == pytest.approx(2 * 3.6 * found.running.value / 3600)
        assert bill.total is not None
        assert bill.total.value == pytest.approx(sum(f.value for f in bill.parts.values()))

    def test_waiting_for_pods_is_not_paid(self) -> None:
        known = survey(record("cluster", waits={"queued": 1000.0}, per_worker_hour=1.0, currency="USD"))
        without = survey(record("cluster", per_worker_hour=1.0, currency="USD"))
        place = Target(text="cluster", context="cluster")
        waits, not_ = known.option(place), without.option(place)
        assert waits.seconds == pytest.approx(not_.seconds + 1000)
        assert waits.cost == pytest.approx(not_.cost)

    def test_no_price_is_never_0(self) -> None:
        option = survey(record("cluster")).option(Target(text="cluster", context="cluster"))
        assert option.cost is None
        assert cost_text(option.bill.total, "USD") == "no price"
        assert option_json(option)["cost"] is None
        assert "set spec.pricing.perWorkerHour" in option.bill.price_source

    def test_without_a_counter_the_machine_here_has_no_price(self) -> None:
        option = survey(record()).option(LOCAL)
        assert option.cost is None
        assert "--assume watts" in option.bill.price_source

    def test_electricity_and_what_the_machine_has_cost(self) -> None:
        known = survey(
            record(energy=WATTS),
            assumed={"electricityPrice": 0.5, "purchasePrice": 2628.0, "years": 2.0, "utilisation": 0.5, "pue": 1.5},
        )
        option = known.option(LOCAL)
        hours = option.seconds / 3600
        assert option.power is not None
        assert option.power.kwh.value == pytest.approx(0.1 * 1.5 * hours)
        assert option.bill.parts["electricity"].value == pytest.approx(0.1 * 1.5 * hours * 0.5)
        assert option.bill.parts["machines"].value == pytest.approx(2628 / 8760 * hours)

    def test_interruptions_cost_half_a_checkpoint_interval_and_a_start(self) -> None:
        spec = job(checkpoint={"everyEpochs": 1, "everySeconds": 300}, pricing={"spot": True}).spec
        found = predicted()
        assumed = Assumptions(interruptions_per_hour=1.0)
        epoch = found.running.value / 20
        start = found.parts["startup"].value + found.parts["staging"].value
        lost = 2 * found.running.value / 3600 * (epoch / 2 + start)
        assert billing.repeated(found, spec, assumed).value == pytest.approx(lost)

    def test_spot_prices(self) -> None:
        spec: dict[str, Any] = {"pricing": {"spot": True}}
        spot = survey(**spec).option(L4)
        assert spot.bill.per_hour == pytest.approx(0.424)
        assert "repeated work" in spot.bill.parts
        t4 = Target(text="g4dn.xlarge", machine="g4dn.xlarge")
        assert survey(**spec).option(t4).bill.per_hour == pytest.approx(0.526)
        assert "no spot price is known" in survey(**spec).option(t4).bill.price_source
        assert survey(assumed={"spotDiscount": 0.6}, **spec).option(t4).bill.per_hour == pytest.approx(0.526 * 0.4)


def cheap(name: str, seconds: float, cost: float | None, stays: bool = True) -> Option:
    option = survey(record("c", per_worker_hour=1.0, currency="USD")).option(Target(text="c", context="c"))
    parts = {
        "forward": option.predicted.parts["forward"].model_copy(
            update={"value": seconds, "low": seconds, "high": seconds}
        )
    }
    made = prediction.Prediction(workers=1, parts=parts, images_per_second=1.0, limit="computing")
    figure = parts["forward"].times((cost or 0.0) / seconds)
    bill = billing.Bill(
        currency="USD",
        parts={"machines": figure},
        price_source=f"price of {name}",
        per_hour=None if cost is None else 1.0,
    )
    return Option(target=Target(text=name, context=name), name=name, predicted=made, bill=bill, power=None, stays=stays)


class TestChoice:
    def test_pareto(self) -> None:
        places = [cheap("a", 100, 5), cheap("b", 200, 1), cheap("c", 300, 2), cheap("d", 100, 6), cheap("e", 50, None)]
        assert [o.name for o in pareto(places)] == ["a", "b"]

    def test_the_sentence(self) -> None:
        words = recommend([cheap("a", 100, 5), cheap("b", 200, 1)], Assumptions())
        assert words.startswith(
            "Take b to save money (3.3 min, 1.00 USD), or a to save 100 s for 4.00 USD more (100 s, 5.00 USD)"
        )
        assert "price of a" in words
        assert "price of b" in words

    def test_who_has_no_price_is_said(self) -> None:
        words = recommend([cheap("a", 100, 5), cheap("e", 50, None)], Assumptions())
        assert "e has no price and is not considered" in words
        assert "nobody can say" in recommend([cheap("e", 50, None)], Assumptions())

    def test_data_that_must_stay_here(self) -> None:
        places = [cheap("here", 500, 9), cheap("there", 5, 1, stays=False)]
        assert recommend(places, Assumptions()).startswith("Take there")
        words = recommend(places, Assumptions(must_stay_here=True))
        assert words.startswith("Take here")
        assert "must stay here" in words
        assert "None of these" in recommend(places[1:], Assumptions(must_stay_here=True))

    def test_break_even(self) -> None:
        """Where the curves cross, both cost the same."""
        assumed: dict[str, Any] = {"purchasePrice": 1000.0}
        known = survey(record(energy=WATTS), assumed=assumed)
        options = [known.option(LOCAL), known.option(L4)]
        found = break_even(options, known.assumed)
        assert found is not None
        buy, rent = found.curves["buy (local)"], found.curves["rent g2-standard-4 (gke)"]
        i = next(i for i in range(41) if rent[i] >= buy[i])
        n = found.trainings
        crossing = float(found.words.split("from ")[1].split(" trainings")[0])
        assert n[i - 1] <= crossing <= n[i] + 0.1
        assert break_even(options, Assumptions()) is None


CONTEXTS = ["kind-one", "prod", "boxx2"]


class TestTargets:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("local", Target(text="local")),
            ("localx4", Target(text="localx4", workers=4)),
            ("prod", Target(text="prod", context="prod")),
            ("prodx2", Target(text="prodx2", context="prod", workers=2)),
            ("boxx2", Target(text="boxx2", context="boxx2")),
            ("prod:t4x2", Target(text="prod:t4x2", context="prod", gpu="T4", workers=2)),
            ("prod:g5.xlarge", Target(text="prod:g5.xlarge", context="prod", machine="g5.xlarge")),
            ("g2-standard-4", Target(text="g2-standard-4", machine="g2-standard-4")),
            ("gke:g2-standard-4x2", Target(text="gke:g2-standard-4x2", machine="g2-standard-4", workers=2)),
            ("eks:g4dn.xlargex8", Target(text="eks:g4dn.xlargex8", machine="g4dn.xlarge", workers=8)),
        ],
    )
    def test_parsed(self, text: str, expected: Target) -> None:
        assert target.parse(text, CONTEXTS, machines.builtin()) == expected

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("g2-standart-4", "it has g2-standard-4"),
            ("gke:g5.xlarge", "g5.xlarge is not a machine of gke"),
            ("nowhere:g5.xlarge", "no context nowhere in the kubeconfig (there is boxx2, kind-one, prod)"),
            ("kind-on", "or say local, boxx2, kind-one, prod"),
            ("", "the catalogue has no machine"),
            ("prod:", "the catalogue has no machine"),
            ("localx0", "the catalogue has no machine"),
        ],
    )
    def test_unknown(self, text: str, words: str) -> None:
        with pytest.raises(UnknownTarget) as error:
            target.parse(text, CONTEXTS, machines.builtin())
        assert words in str(error.value)

    def test_what_was_not_measured(self) -> None:
        with pytest.raises(CannotEstimate, match="yolojob bench FILE --on prod"):
            survey().option(Target(text="prod", context="prod"))


class TestFiles:
    def test_every_machine_has_a_gpu_that_is_known(self) -> None:
        known = machines.builtin()
        for name, row in known.machines.items():
            assert row.gpu in known.accelerators, name

    def test_a_users_catalogue_is_laid_over(self, tmp_path: Any) -> None:
        path = tmp_path / "mine.yaml"
        path.write_text(
            "machines: {box: {provider: us, gpu: T4, gpus: 1, cpus: 8, network: 1, price: 0.1, date: 2026-01-01, source: us}}"
        )
        known = machines.load(path)
        assert known.machine("box").price == pytest.approx(0.1)
        assert "g5.xlarge" in known.machines
        path.write_text("currency: EUR")
        assert machines.load(path).machines == {}, "prices in dollars are no euros"

    @pytest.mark.parametrize(
        "text", ["[]", "foo: 1", "machines: {box: {price: -1}}", "machines: {box: {price: x}}", "{"]
    )
    def test_a_broken_catalogue_is_named(self, tmp_path: Any, text: str) -> None:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        with pytest.raises(InvalidCatalogue, match=r"mine\.yaml"):
            machines.load(path)

    def test_nearest_names(self) -> None:
        with pytest.raises(UnknownMachine, match=r"p5\.48xlarge"):
            machines.builtin().machine("p5.48xlargo")

    def test_assumptions_from_file_and_command_line(self, tmp_path: Any) -> None:
        path = tmp_path / "assumed.yaml"
        path.write_text("electricityPrice: 0.3\nyears: 4\n")
        found = assumptions.load(path, ["years=5", "mustStayHere=true"])
        assert (found.electricity_price, found.years, found.must_stay_here) == (0.3, 5.0, True)

    @pytest.mark.parametrize(
        ("setting", "words"),
        [
            ("years", "KEY=VALUE"),
            ("yeers=3", "there is no such assumption"),
            ("years=-3", "greater than 0"),
            ("utilisation=7", "less than or equal to 1"),
            ("pue=abc", "valid number"),
            ("mustStayHere=perhaps", "boolean"),
        ],
    )
    def test_bad_assumptions(self, setting: str, words: str) -> None:
        with pytest.raises(InvalidAssumption, match=words):
            assumptions.load(None, [setting])
