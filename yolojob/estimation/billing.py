"""Computes the bill of a training by part, and its energy. Pure.

The part `machines` is price × running time of each pod, as in `status.cost`. Without a price there is no total, never
0, and `price_source` says what is missing.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from yolojob.api.spec import YoloTrainingJobSpec
from yolojob.api.time_parts import TimePart
from yolojob.estimation.assumptions import Assumptions
from yolojob.estimation.estimate import Basis, Estimate, total
from yolojob.estimation.prediction import Prediction

BYTES_PER_GIB = 2**30
REPEATED_AT_RESTART = (TimePart.SCHEDULING, TimePart.IMAGE_PULL, TimePart.STAGING, TimePart.STARTUP)
"""Parts that the replacement of an interrupted worker repeats."""


class BillPart(enum.StrEnum):
    """A part of a bill. Bills list the parts in the order of the members."""

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
        """The name for people: "repeated work"."""
        return self.value.replace("_", " ")


@dataclass(frozen=True, kw_only=True)
class Bill:
    """The cost of a training."""

    currency: str
    parts: dict[BillPart, Estimate]
    price_source: str
    """Where the price comes from, or what is missing."""
    per_hour: float | None = None
    """Cost of all workers per running hour; None without a price."""
    spot: bool = False

    @property
    def total(self) -> Estimate | None:
        """The sum of the parts; None without a price."""
        return total(self.parts.values()) if self.per_hour is not None else None


@dataclass(frozen=True, kw_only=True)
class Power:
    """The energy that a training consumes."""

    kwh: Estimate
    source: str
    """The counter or data sheet that the power comes from."""


@dataclass(frozen=True, kw_only=True)
class RentalPrice:
    """The price of a rented worker, or why it is unknown."""

    per_worker_hour: float | None
    currency: str
    source: str
    """Where the price comes from, or what is missing."""
    spot: bool = False
    """Whether the workers may be interrupted."""


def bill_rented(
    predicted: Prediction,
    spec: YoloTrainingJobSpec,
    assumptions: Assumptions,
    price: RentalPrice,
    dataset_bytes: int | None,
) -> Bill:
    """The bill for rented machines.

    Args:
        predicted: the time.
        spec: the job; its checkpoint intervals limit the cost of an interruption.
        assumptions: tariffs.
        price: the price of a worker.
        dataset_bytes: size of the dataset, which is stored at the provider; None if unknown.
    """
    if price.per_worker_hour is None:
        return Bill(currency=price.currency, parts={}, price_source=price.source)
    hours = predicted.running.times(1 / 3600)
    per_hour = price.per_worker_hour * predicted.workers
    parts = {BillPart.MACHINES: hours.times(per_hour)}
    if price.spot:
        repeated = repeated_work_seconds(predicted, spec, assumptions)
        parts[BillPart.REPEATED_WORK] = repeated.times(per_hour / 3600)
    stored = (dataset_bytes or 0) / BYTES_PER_GIB + assumptions.results_gib
    parts[BillPart.STORAGE] = Estimate.within(
        stored * assumptions.storage_price * assumptions.storage_months, 0.2, Basis.PREDICTED
    )
    parts[BillPart.EGRESS] = Estimate.within(assumptions.results_gib * assumptions.egress_price, 0.5, Basis.PREDICTED)
    if assumptions.people_hours and assumptions.people_rate:
        parts[BillPart.PEOPLE] = Estimate.within(
            assumptions.people_hours * assumptions.people_rate, 0.5, Basis.PREDICTED
        )
    return Bill(currency=price.currency, parts=parts, price_source=price.source, per_hour=per_hour, spot=price.spot)


def repeated_work_seconds(predicted: Prediction, spec: YoloTrainingJobSpec, assumptions: Assumptions) -> Estimate:
    """Expected seconds lost by interruptions: each costs half of the time between two checkpoints, and a new start."""
    seconds = predicted.running.value
    interruptions = assumptions.interruptions_per_hour * predicted.workers * seconds / 3600
    epoch = seconds / spec.train.epochs * spec.checkpoint.every_epochs
    checkpoint_interval = min(float(spec.checkpoint.every_seconds), epoch)
    start = sum(predicted.parts[p].value for p in REPEATED_AT_RESTART if p in predicted.parts)
    expected = interruptions * (checkpoint_interval / 2 + start)
    return Estimate(value=expected, low=0.0, high=expected * 3, basis=Basis.PREDICTED)


def bill_owned(predicted: Prediction, power: Power | None, assumptions: Assumptions, currency: str) -> Bill:
    """The bill for an owned machine: electricity, and its depreciation."""
    if power is None:
        source = "no price: the power of this machine is unknown; set --assume watts=…"
        return Bill(currency=currency, parts={}, price_source=source)
    hours = predicted.total.times(1 / 3600)
    parts = {BillPart.ELECTRICITY: power.kwh.times(assumptions.electricity_price)}
    source = f"electricity at {assumptions.electricity_price:g} {currency}/kWh"
    depreciation = assumptions.hourly_depreciation
    if depreciation is None:
        source += "; the machine itself is not counted (--assume purchasePrice=…)"
    else:
        parts[BillPart.MACHINES] = hours.times(depreciation)
        source += f", {assumptions.purchase_price:g} {currency} over {assumptions.years:g} years"
        source += f" at {assumptions.utilisation:.0%}"
    if assumptions.people_hours_local and assumptions.people_rate:
        parts[BillPart.PEOPLE] = Estimate.within(
            assumptions.people_hours_local * assumptions.people_rate, 0.5, Basis.PREDICTED
        )
    value = sum(part.value for part in parts.values())
    return Bill(
        currency=currency, parts=parts, price_source=source, per_hour=value / hours.value if hours.value else 0.0
    )


def estimate_energy(predicted: Prediction, watts: float, source: str, assumptions: Assumptions, basis: Basis) -> Power:
    """The energy of a training in which all workers together take this power."""
    kwh = predicted.running.times(watts * assumptions.pue / 3.6e6).limit_basis(basis)
    return Power(kwh=kwh, source=source)
