"""Determines the price of a worker: from the job's spec, or from the catalogue by the worker's machine. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from yolojob.api.errors import UserError
from yolojob.api.spec import YoloTrainingJobSpec
from yolojob.catalogue import machines


@dataclass(frozen=True, kw_only=True)
class Price:
    """Price of one worker for one hour."""

    per_worker_hour: float
    currency: str
    source: str
    """Source of the price."""


class NoPrice(UserError):
    """The price is unknown; the message says what is missing."""


def price_of(
    spec: YoloTrainingJobSpec, machine: str = "", *, spot: bool = False, catalogue: machines.Catalogue | None = None
) -> Price:
    """The price of one worker of a job.

    A worker that requests some of a machine's GPUs pays its share of the machine; a worker without GPUs pays all of it.

    Args:
        spec: the job; its spec.pricing takes precedence.
        machine: name of the worker's machine; empty if unknown.
        spot: whether it is a spot machine.
        catalogue: the catalogue. Default: the built-in one.

    Raises:
        NoPrice: neither the job nor the catalogue has a price.
    """
    pricing = spec.pricing
    if pricing.per_worker_hour is not None:
        return Price(
            per_worker_hour=pricing.per_worker_hour, currency=pricing.currency, source="spec.pricing.perWorkerHour"
        )
    name, spot = (pricing.machine, pricing.spot) if pricing.machine else (machine, spot or pricing.spot)
    if not name:
        raise NoPrice("no price: set spec.pricing.perWorkerHour, or spec.pricing.machine to a machine of the catalogue")
    catalogue = catalogue or machines.builtin()
    try:
        row = catalogue.machine(name)
    except machines.UnknownMachine as unknown:
        raise NoPrice(f"no price: {unknown}; set spec.pricing.perWorkerHour") from None
    machine_price = row.spot if spot else row.price
    if machine_price is None:
        raise NoPrice(f"no price: the catalogue has no spot price for {name}; set spec.pricing.perWorkerHour")
    requested = spec.workers.gpu.count if spec.workers.gpu else 0
    share = min(requested / row.gpus, 1.0) if requested and row.gpus else 1.0
    part = "" if share == 1.0 else f", {requested} of {row.gpus} GPUs"
    kind = "spot" if spot else "on demand"
    return Price(
        per_worker_hour=machine_price * share,
        currency=catalogue.currency,
        source=f"{name}{part}, {kind}, seen {row.date}: {row.source}",
    )
