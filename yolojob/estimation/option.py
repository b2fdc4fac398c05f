"""One place for a training, with its time, its money, its energy; and which of several places to choose. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from yolojob.estimation.billing import Bill, Power
from yolojob.estimation.estimate import Estimate
from yolojob.estimation.prediction import Prediction
from yolojob.estimation.target import Target
from yolojob.format import money_amount

MOST_WORKERS = 8
"""Scaling is shown up to here."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """A target, worked out."""

    target: Target
    name: str
    """For people: "local", "2 × g2-standard-4 (gke)"."""
    predicted: Prediction
    bill: Bill
    power: Power | None
    scaling: dict[int, Prediction] = field(default_factory=dict)
    """By number of workers."""
    stays: bool = True
    """Whether the data stays at this place."""

    @property
    def seconds(self) -> float:
        return self.predicted.total.value

    @property
    def cost(self) -> float | None:
        return self.bill.total.value if self.bill.total else None


def cost_text(figure: Estimate | None, currency: str) -> str:
    """An amount; where there is no price, that."""
    return "no price" if figure is None else money_amount(figure.value, currency)


def option_json(option: Option) -> dict[str, Any]:
    """An option as plain data."""

    def plain(figure: Estimate | None) -> dict[str, Any] | None:
        return figure.model_dump(mode="json") if figure else None

    return {
        "target": option.target.text,
        "name": option.name,
        "workers": option.predicted.workers,
        "seconds": plain(option.predicted.total),
        "parts": {part.value: plain(figure) for part, figure in option.predicted.parts.items()},
        "imagesPerSecond": round(option.predicted.images_per_second, 2),
        "limit": option.predicted.limit,
        "cost": plain(option.bill.total),
        "costParts": {part.value: plain(figure) for part, figure in option.bill.parts.items()},
        "currency": option.bill.currency,
        "price": option.bill.price_source,
        "kwh": plain(option.power.kwh) if option.power else None,
        "energy": option.power.words if option.power else None,
        "staysHere": option.stays,
        "scaling": {str(n): round(p.total.value, 2) for n, p in option.scaling.items()},
    }
