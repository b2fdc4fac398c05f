"""Options: targets with their predicted time, cost and energy. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from yolojob.estimation.billing import Bill, Power
from yolojob.estimation.estimate import Estimate
from yolojob.estimation.prediction import Prediction
from yolojob.estimation.target import Target
from yolojob.format import money_amount

MAX_SCALING_WORKERS = 8
"""Largest number of workers in scaling curves."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """A target with its predicted time, cost and energy."""

    target: Target
    name: str
    """For people: "local", "2 × g2-standard-4 (gke)"."""
    predicted: Prediction
    bill: Bill
    power: Power | None
    scaling: dict[int, Prediction] = field(default_factory=dict)
    """Predictions by number of workers."""
    stays: bool = True
    """Whether the data stays at this site."""

    @property
    def seconds(self) -> float:
        return self.predicted.total.value

    @property
    def cost(self) -> float | None:
        return self.bill.total.value if self.bill.total else None


def cost_text(cost: Estimate | None, currency: str) -> str:
    """The amount, or "no price"."""
    return "no price" if cost is None else money_amount(cost.value, currency)


def option_json(option: Option) -> dict[str, Any]:
    """The option as plain data, for programs."""

    def plain(estimate: Estimate | None) -> dict[str, Any] | None:
        return estimate.model_dump(mode="json") if estimate else None

    return {
        "target": option.target.text,
        "name": option.name,
        "workers": option.predicted.workers,
        "seconds": plain(option.predicted.total),
        "parts": {part.value: plain(estimate) for part, estimate in option.predicted.parts.items()},
        "imagesPerSecond": round(option.predicted.images_per_second, 2),
        "limit": option.predicted.limit,
        "cost": plain(option.bill.total),
        "costParts": {part.value: plain(estimate) for part, estimate in option.bill.parts.items()},
        "currency": option.bill.currency,
        "price": option.bill.price_source,
        "kwh": plain(option.power.kwh) if option.power else None,
        "energy": option.power.source if option.power else None,
        "staysHere": option.stays,
        "scaling": {str(n): round(p.total.value, 2) for n, p in option.scaling.items()},
    }
