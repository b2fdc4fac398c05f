"""Assumptions of an estimate that cannot be measured: tariffs, wages, plans. Reports list their values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError

from yolojob.api.base import ApiModel
from yolojob.api.errors import UserError
from yolojob.api.fields import NonNegative, Positive

Share = Annotated[float, Field(ge=0, le=1)]


class Assumptions(ApiModel):
    """Assumptions of an estimate. Prices are in the catalogue's currency."""

    electricity_price: NonNegative = 0.17
    """Price of a kWh; the default is the mean of US households in 2025."""
    purchase_price: Positive | None = None
    """Price of the local machine, or of one to buy; without it, only electricity is counted."""
    years: Positive = 3.0
    """Years for which a bought machine is used."""
    utilisation: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Fraction of these years in which the machine trains."""
    pue: Annotated[float, Field(ge=1)] = 1.0
    """Power usage effectiveness: total power divided by the machine's power."""
    watts: Positive | None = None
    """Power of the local machine during training, if no counter measures it."""
    host_watts: NonNegative = 150.0
    """Power of a rented machine in addition to its GPUs, for the energy estimate."""
    people_hours: NonNegative = 0.0
    """Hours of work for a training on a rented machine: uploading data, fetching results, supervision."""
    people_hours_local: NonNegative = 0.0
    """Hours of work for a training on the local machine."""
    people_rate: NonNegative = 0.0
    """Price of an hour of this work."""
    spot_discount: Share | None = None
    """Discount on the on-demand price if the catalogue has no spot price. spec.pricing.spot selects spot prices."""
    interruptions_per_hour: NonNegative = 0.05
    """Interruptions of a spot worker; each ends the attempt, and the work since the last checkpoint is repeated."""
    storage_price: NonNegative = 0.02
    """Price per GiB and month of the dataset and results at the provider."""
    storage_months: NonNegative = 1.0
    """Months for which they are stored."""
    egress_price: NonNegative = 0.09
    """Price per GiB that leaves the provider: the results."""
    results_gib: NonNegative = 0.2
    """Size of the results."""
    upload_mbps: Positive = 100.0
    """Speed of uploading the dataset to a provider, in Mbit/s."""
    provision_seconds: NonNegative = 120.0
    """Time until a rented machine has joined the cluster."""
    image_gib: NonNegative = 5.0
    """Compressed size of the trainer image."""
    pull_mbps: Positive = 800.0
    """Speed of pulling the image to a rented machine, in Mbit/s."""
    must_stay_here: bool = False
    """The data must not leave this site: other machines are shown, but not recommended."""
    trainings_per_month: Positive = 20.0
    """Number of trainings, for comparing buying with renting."""

    @property
    def hourly_depreciation(self) -> float | None:
        """Depreciation of the bought machine per hour of training; None without a purchase price."""
        if self.purchase_price is None:
            return None
        return self.purchase_price / (self.years * 8760 * self.utilisation)


class InvalidAssumption(UserError):
    """An assumption is invalid; the message gives its key, its value and what is allowed."""


def load(file: Path | None, settings: list[str]) -> Assumptions:
    """The defaults, overridden by a file, overridden by KEY=VALUE settings.

    Raises:
        InvalidAssumption: a key or a value is wrong.
    """
    content: dict[str, Any] = {}
    if file is not None:
        try:
            loaded = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InvalidAssumption(f"{file}: {error}") from None
        if not isinstance(loaded, dict):
            raise InvalidAssumption(f"{file}: must be a mapping such as electricityPrice: 0.3")
        content |= loaded
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise InvalidAssumption(f"--assume {setting}: must be KEY=VALUE, such as electricityPrice=0.3")
        content[key] = yaml.safe_load(value)
    # YAML reads 1 as an integer, and the fields are floats.
    content = {k: float(v) if type(v) is int else v for k, v in content.items()}
    try:
        return Assumptions.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        names = ", ".join(sorted(f.alias or name for name, f in Assumptions.model_fields.items()))
        reason = (
            f"unknown assumption; the assumptions are {names}" if first["type"] == "extra_forbidden" else first["msg"]
        )
        raise InvalidAssumption(f"--assume {key}={first['input']}: {reason}") from None
