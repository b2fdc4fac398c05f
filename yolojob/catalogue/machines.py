"""Machines that can be rented and what their GPUs can do: dated data files with sources, and a user's file laid over them."""

from __future__ import annotations

import difflib
import functools
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError

from yolojob.api.base import ApiModel
from yolojob.api.errors import UserError

Positive = Annotated[float, Field(gt=0)]


class Machine(ApiModel):
    """A machine that can be rented."""

    provider: str
    """Who rents it out: gcp, aws, or a name of the user's."""
    gpu: str
    """Its GPUs' type, as in spec.workers.gpu.types."""
    gpus: Annotated[int, Field(ge=0)]
    """GPUs in all."""
    cpus: Annotated[int, Field(ge=1)]
    """Virtual CPUs."""
    network: Positive
    """To other machines, in Gbit/s."""
    price: Positive
    """On demand, for one hour."""
    spot: Positive | None = None
    """Spot or preemptible, for one hour."""
    date: Annotated[date, Field(strict=False)]
    """When the price was seen."""
    source: str
    """Where."""


class Accelerator(ApiModel):
    """What a GPU can do, by its maker's data sheet."""

    half: Positive
    """Dense peak in half precision, in TFLOP/s."""
    single: Positive
    """Peak in single precision, in TFLOP/s."""
    memory: Positive
    """In GB."""
    bandwidth: Positive
    """Of its memory, in GB/s."""
    watts: Positive
    """Board power."""
    source: str


class Catalogue(ApiModel):
    """What is known of machines."""

    currency: Annotated[str, Field(pattern="^[A-Z]{3}$")]
    machines: dict[str, Machine]
    accelerators: dict[str, Accelerator]

    def machine(self, name: str) -> Machine:
        """
        Raises:
            UnknownMachine: there is none of this name; offers those that are nearest.
        """
        if name not in self.machines:
            near = difflib.get_close_matches(name, self.machines, n=3, cutoff=0.3)
            raise UnknownMachine(
                f"the catalogue has no machine {name}; it has {', '.join(near or sorted(self.machines))}"
            )
        return self.machines[name]


class UnknownMachine(UserError):
    """No machine of this name; the words offer others."""


class InvalidCatalogue(UserError):
    """A user's file is none; the words name the field."""


@functools.cache
def builtin() -> Catalogue:
    """The catalogue that comes along."""
    return Catalogue.model_validate(_builtin())


def load(path: Path | None) -> Catalogue:
    """The catalogue, with the machines, accelerators and currency of a user's file laid over it.

    Raises:
        InvalidCatalogue: the file cannot be read, or is no catalogue.
    """
    if path is None:
        return builtin()
    try:
        own = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidCatalogue(f"{path}: {error}") from None
    if not isinstance(own, dict) or not set(own) <= set(Catalogue.model_fields):
        raise InvalidCatalogue(
            f"{path}: must be a mapping with {', '.join(Catalogue.model_fields)}, as machines.yaml has"
        )
    merged = _builtin()
    currency = own.get("currency", merged["currency"])
    if currency != merged["currency"]:
        merged["machines"] = {}  # prices in another currency cannot be compared with these
    for part in ("machines", "accelerators"):
        merged[part] = {**merged[part], **(own.get(part) or {})}
    try:
        return Catalogue.model_validate({**merged, "currency": currency})
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidCatalogue(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _builtin() -> dict[str, Any]:
    data = files("yolojob.catalogue").joinpath("data")
    machines = yaml.safe_load(data.joinpath("machines.yaml").read_text(encoding="utf-8"))
    return {**machines, "accelerators": yaml.safe_load(data.joinpath("accelerators.yaml").read_text(encoding="utf-8"))}
