"""What a training costs, in parts, and what it takes of energy. Pure.

The sum of `machines` is price × running time of each pod, as `status.cost` has it. Without a price there is none, and the
words say what is missing: never 0.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from yolojob.api.spec import YoloTrainingJobSpec
from yolojob.api.time_parts import TimePart
from yolojob.estimation.assumptions import Assumptions
from yolojob.estimation.estimate import Basis, Estimate, total
from yolojob.estimation.prediction import Prediction

GIB = 2**30
RESTARTED = (TimePart.SCHEDULING, TimePart.IMAGE_PULL, TimePart.STAGING, TimePart.STARTUP)
"""What a worker that replaces an interrupted one does again."""


class BillPart(enum.StrEnum):
    """A part of a bill. The members stand in the order in which bills list them."""

    colour: str
    """`#rrggbb`."""

    def __new__(cls, value: str, colour: str) -> BillPart:
        member = str.__new__(cls, value)
        member._value_ = value
        member.colour = colour
        return member

    MACHINES = "machines", "#0969da"
    ELECTRICITY = "electricity", "#d4a72c"
    REPEATED_WORK = "repeated_work", "#cf222e"
    STORAGE = "storage", "#8250df"
    EGRESS = "egress", "#bf8700"
    PEOPLE = "people", "#1a7f37"

    @property
    def label(self) -> str:
        """For people: "repeated work"."""
        return self.value.replace("_", " ")


@dataclass(frozen=True, kw_only=True)
class Bill:
    """What a training costs."""

    currency: str
    parts: dict[BillPart, Estimate]
    price_source: str
    """Where the price comes from, or what is missing."""
    per_hour: float | None = None
    """Of all workers, while they run."""
    spot: bool = False

    @property
    def total(self) -> Estimate | None:
        """None where a part of it has no price."""
        return total(self.parts.values()) if self.per_hour is not None else None


@dataclass(frozen=True, kw_only=True)
class Power:
    """What a training takes of energy."""

    kwh: Estimate
    words: str
    """By which counter, or from which data sheet."""


def rented(
    predicted: Prediction,
    spec: YoloTrainingJobSpec,
    assumed: Assumptions,
    *,
    per_worker_hour: float | None,
    currency: str,
    words: str,
    dataset_bytes: int | None,
    spot: bool = False,
) -> Bill:
    """The bill for rented machines.

    Args:
        predicted: how long.
        spec: the job; its checkpoints bound what an interruption costs.
        assumed: tariffs.
        per_worker_hour: price of a worker; none where there is none.
        currency: of it.
        words: where it comes from, or why there is none.
        dataset_bytes: that are stored at the provider.
        spot: whether the workers may be interrupted.
    """
    if per_worker_hour is None:
        return Bill(currency=currency, parts={}, price_source=words)
    hours = predicted.running.times(1 / 3600)
    per_hour = per_worker_hour * predicted.workers
    parts = {BillPart.MACHINES: hours.times(per_hour)}
    if spot:
        lost = repeated(predicted, spec, assumed)
        parts[BillPart.REPEATED_WORK] = lost.times(per_hour / 3600)
    stored = (dataset_bytes or 0) / GIB + assumed.results_gib
    parts[BillPart.STORAGE] = Estimate.within(
        stored * assumed.storage_price * assumed.storage_months, 0.2, Basis.PREDICTED
    )
    parts[BillPart.EGRESS] = Estimate.within(assumed.results_gib * assumed.egress_price, 0.5, Basis.PREDICTED)
    if assumed.people_hours and assumed.people_rate:
        parts[BillPart.PEOPLE] = Estimate.within(assumed.people_hours * assumed.people_rate, 0.5, Basis.PREDICTED)
    return Bill(currency=currency, parts=parts, price_source=words, per_hour=per_hour, spot=spot)


def repeated(predicted: Prediction, spec: YoloTrainingJobSpec, assumed: Assumptions) -> Estimate:
    """Seconds that interruptions are expected to cost: half of the time between two checkpoints, and a new start, each."""
    seconds = predicted.running.value
    interruptions = assumed.interruptions_per_hour * predicted.workers * seconds / 3600
    epoch = seconds / spec.train.epochs * spec.checkpoint.every_epochs
    between = min(float(spec.checkpoint.every_seconds), epoch)
    start = sum(predicted.parts[p].value for p in RESTARTED if p in predicted.parts)
    expected = interruptions * (between / 2 + start)
    return Estimate(value=expected, low=0.0, high=expected * 3, basis=Basis.PREDICTED)


def owned(predicted: Prediction, power: Power | None, assumed: Assumptions, currency: str) -> Bill:
    """The bill for a machine of one's own: electricity, and its part of what it has cost."""
    if power is None:
        words = "no price: how much power this machine takes is not known; set --assume watts=…"
        return Bill(currency=currency, parts={}, price_source=words)
    hours = predicted.total.times(1 / 3600)
    parts = {BillPart.ELECTRICITY: power.kwh.times(assumed.electricity_price)}
    words = f"electricity at {assumed.electricity_price:g} {currency}/kWh"
    depreciation = assumed.hourly_depreciation
    if depreciation is None:
        words += "; the machine itself is not counted (--assume purchasePrice=…)"
    else:
        parts[BillPart.MACHINES] = hours.times(depreciation)
        words += f", {assumed.purchase_price:g} {currency} over {assumed.years:g} years at {assumed.utilisation:.0%}"
    if assumed.people_hours_local and assumed.people_rate:
        parts[BillPart.PEOPLE] = Estimate.within(assumed.people_hours_local * assumed.people_rate, 0.5, Basis.PREDICTED)
    value = sum(f.value for f in parts.values())
    return Bill(
        currency=currency, parts=parts, price_source=words, per_hour=value / hours.value if hours.value else 0.0
    )


def energy(predicted: Prediction, watts: float, words: str, assumed: Assumptions, basis: Basis) -> Power:
    """Energy at this power of all workers together."""
    kwh = predicted.running.times(watts * assumed.pue / 3.6e6).at_worst(basis)
    return Power(kwh=kwh, words=words)
