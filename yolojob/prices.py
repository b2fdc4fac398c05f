"""What a worker costs per hour: as the job says, or as the machine under it is listed in `data/machines.yaml`. Pure."""

from __future__ import annotations

import difflib
import functools
from dataclasses import dataclass
from datetime import date
from importlib.resources import files
from typing import Annotated, Any

import yaml
from pydantic import Field

from yolojob.base import Model
from yolojob.spec import YoloTrainingJobSpec


class Machine(Model):
    """A machine that can be rented."""

    gpu: str
    """Its GPUs' type, as in spec.workers.gpu.types."""
    gpus: Annotated[int, Field(ge=0)]
    """GPUs in all."""
    price: Annotated[float, Field(gt=0)]
    """On demand, for one hour."""
    spot: Annotated[float, Field(gt=0)] | None = None
    """Spot or preemptible, for one hour."""
    date: Annotated[date, Field(strict=False)]
    """When the price was seen."""
    source: str
    """Where."""


@dataclass(frozen=True, kw_only=True)
class Price:
    """Price of one worker for one hour."""

    per_worker_hour: float
    currency: str
    words: str
    """Where it comes from."""


class NoPrice(Exception):
    """There is no price; the words say what is missing."""


@functools.cache
def catalogue() -> tuple[str, dict[str, Machine]]:
    """(currency, machines by name)."""
    text = files("yolojob").joinpath("data/machines.yaml").read_text(encoding="utf-8")
    table: dict[str, Any] = yaml.safe_load(text)
    return table["currency"], {name: Machine.model_validate(row) for name, row in table["machines"].items()}


def price_of(spec: YoloTrainingJobSpec, machine: str = "", *, spot: bool = False) -> Price:
    """The price of one worker of a job.

    A worker that asks for some of a machine's GPUs pays that share of it; one that asks for none pays all of it.

    Args:
        spec: the job; its own spec.pricing goes first.
        machine: name of the machine that the worker runs on, where it is known.
        spot: that machine is a spot machine.

    Raises:
        NoPrice: neither the job nor the catalogue has one.
    """
    pricing = spec.pricing
    if pricing.per_worker_hour is not None:
        return Price(
            per_worker_hour=pricing.per_worker_hour, currency=pricing.currency, words="spec.pricing.perWorkerHour"
        )
    currency, machines = catalogue()
    name, spot = (pricing.machine, pricing.spot) if pricing.machine else (machine, spot or pricing.spot)
    if not name:
        raise NoPrice("no price: set spec.pricing.perWorkerHour, or spec.pricing.machine to one of the catalogue")
    row = machines.get(name)
    if row is None:
        near = difflib.get_close_matches(name, machines, n=3, cutoff=0.3)
        offer = f"; it has {', '.join(near or sorted(machines))}"
        raise NoPrice(f"no price: the catalogue has no machine {name}{offer}; set spec.pricing.perWorkerHour")
    whole = row.spot if spot else row.price
    if whole is None:
        raise NoPrice(f"no price: the catalogue has no spot price for {name}; set spec.pricing.perWorkerHour")
    asked = spec.workers.gpu.count if spec.workers.gpu else 0
    share = min(asked / row.gpus, 1.0) if asked and row.gpus else 1.0
    part = "" if share == 1.0 else f", {asked} of {row.gpus} GPUs"
    kind = "spot" if spot else "on demand"
    return Price(
        per_worker_hour=whole * share, currency=currency, words=f"{name}{part}, {kind}, seen {row.date}: {row.source}"
    )
