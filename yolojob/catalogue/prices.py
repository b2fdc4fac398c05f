"""What a worker costs per hour: as the job says, or as the machine under it is listed in `data/machines.yaml`. Pure."""

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
    words: str
    """Where it comes from."""


class NoPrice(UserError):
    """There is no price; the words say what is missing."""


def price_of(
    spec: YoloTrainingJobSpec, machine: str = "", *, spot: bool = False, known: machines.Catalogue | None = None
) -> Price:
    """The price of one worker of a job.

    A worker that asks for some of a machine's GPUs pays that share of it; one that asks for none pays all of it.

    Args:
        spec: the job; its own spec.pricing goes first.
        machine: name of the machine that the worker runs on, where it is known.
        spot: that machine is a spot machine.
        known: the catalogue; the one that comes along unless given.

    Raises:
        NoPrice: neither the job nor the catalogue has one.
    """
    pricing = spec.pricing
    if pricing.per_worker_hour is not None:
        return Price(
            per_worker_hour=pricing.per_worker_hour, currency=pricing.currency, words="spec.pricing.perWorkerHour"
        )
    name, spot = (pricing.machine, pricing.spot) if pricing.machine else (machine, spot or pricing.spot)
    if not name:
        raise NoPrice("no price: set spec.pricing.perWorkerHour, or spec.pricing.machine to one of the catalogue")
    known = known or machines.builtin()
    try:
        row = known.machine(name)
    except machines.UnknownMachine as unknown:
        raise NoPrice(f"no price: {unknown}; set spec.pricing.perWorkerHour") from None
    whole = row.spot if spot else row.price
    if whole is None:
        raise NoPrice(f"no price: the catalogue has no spot price for {name}; set spec.pricing.perWorkerHour")
    asked = spec.workers.gpu.count if spec.workers.gpu else 0
    share = min(asked / row.gpus, 1.0) if asked and row.gpus else 1.0
    part = "" if share == 1.0 else f", {asked} of {row.gpus} GPUs"
    kind = "spot" if spot else "on demand"
    return Price(
        per_worker_hour=whole * share,
        currency=known.currency,
        words=f"{name}{part}, {kind}, seen {row.date}: {row.source}",
    )
