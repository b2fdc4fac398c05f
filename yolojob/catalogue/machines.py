"""Loads the catalogue of rentable machines and GPUs: data files with dates and sources, overridden by a user's file."""

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
from yolojob.api.fields import Positive


class Machine(ApiModel):
    """A machine that can be rented."""

    provider: str
    """Provider: gcp, aws, or a name of the user's choice."""
    gpu: str
    """GPU type, as in spec.workers.gpu.types."""
    gpus: Annotated[int, Field(ge=0)]
    """Number of GPUs."""
    cpus: Annotated[int, Field(ge=1)]
    """Number of virtual CPUs."""
    network: Positive
    """Network rate to other machines, in Gbit/s."""
    price: Positive
    """On-demand price for one hour."""
    spot: Positive | None = None
    """Spot or preemptible price for one hour."""
    date: Annotated[date, Field(strict=False)]
    """Date of the price."""
    source: str
    """Source of the price."""


class Accelerator(ApiModel):
    """Performance of a GPU, from its manufacturer's data sheet."""

    half: Positive
    """Dense peak in half precision, in TFLOP/s."""
    single: Positive
    """Peak in single precision, in TFLOP/s."""
    memory: Positive
    """Memory in GB."""
    bandwidth: Positive
    """Memory bandwidth in GB/s."""
    watts: Positive
    """Board power in W."""
    source: str


class Catalogue(ApiModel):
    """Machines with prices, and GPUs."""

    currency: Annotated[str, Field(pattern="^[A-Z]{3}$")]
    machines: dict[str, Machine]
    accelerators: dict[str, Accelerator]

    def machine(self, name: str) -> Machine:
        """The machine with this name.

        Raises:
            UnknownMachine: the catalogue has no such machine; the message suggests close matches.
        """
        if name not in self.machines:
            matches = difflib.get_close_matches(name, self.machines, n=3, cutoff=0.3)
            raise UnknownMachine(
                f"the catalogue has no machine {name}; it has {', '.join(matches or sorted(self.machines))}"
            )
        return self.machines[name]


class UnknownMachine(UserError):
    """The catalogue has no machine of this name; the message suggests others."""


class InvalidCatalogue(UserError):
    """A user's catalogue file is invalid; the message names the field."""


@functools.cache
def builtin() -> Catalogue:
    """The built-in catalogue."""
    return Catalogue.model_validate(_builtin())


def load(path: Path | None) -> Catalogue:
    """The built-in catalogue, overridden by the machines, accelerators and currency of a user's file.

    Raises:
        InvalidCatalogue: the file cannot be read, or is not a catalogue.
    """
    if path is None:
        return builtin()
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidCatalogue(f"{path}: {error}") from None
    if not isinstance(content, dict) or not set(content) <= set(Catalogue.model_fields):
        raise InvalidCatalogue(
            f"{path}: must be a mapping with {', '.join(Catalogue.model_fields)}, as in machines.yaml"
        )
    merged = _builtin()
    currency = content.get("currency", merged["currency"])
    if currency != merged["currency"]:
        merged["machines"] = {}  # prices in another currency cannot be compared with these
    for part in ("machines", "accelerators"):
        merged[part] = {**merged[part], **(content.get(part) or {})}
    try:
        return Catalogue.model_validate({**merged, "currency": currency})
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidCatalogue(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _builtin() -> dict[str, Any]:
    data = files("yolojob.catalogue").joinpath("data")
    machines = yaml.safe_load(data.joinpath("machines.yaml").read_text(encoding="utf-8"))
    return {**machines, "accelerators": yaml.safe_load(data.joinpath("accelerators.yaml").read_text(encoding="utf-8"))}
