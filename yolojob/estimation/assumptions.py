"""What nobody can measure for the user: tariffs, wages, plans. Each has a default that is said, or none and a consequence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError

from yolojob.api.base import ApiModel
from yolojob.api.errors import UserError

NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class Assumptions(ApiModel):
    """Money in the catalogue's currency."""

    electricity_price: NonNegative = 0.17
    """Of a kWh; the mean of US households in 2025."""
    purchase_price: Positive | None = None
    """Of the machine here, or of one that would be bought; without it only electricity is counted."""
    years: Positive = 3.0
    """For which a bought machine is used."""
    utilisation: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Part of these years in which it works."""
    pue: Annotated[float, Field(ge=1)] = 1.0
    """Power usage effectiveness: all power over the machine's."""
    watts: Positive | None = None
    """Power of the machine here while it trains, where no counter tells."""
    host_watts: NonNegative = 150.0
    """Of a rented machine beside its GPUs, for its energy."""
    people_hours: NonNegative = 0.0
    """Of a person's work for a training on a rented machine: data there, results back, looking after it."""
    people_hours_local: NonNegative = 0.0
    """The same on a machine of one's own."""
    people_rate: NonNegative = 0.0
    """Of an hour of that work."""
    spot_discount: Share | None = None
    """Off the price on demand, where the catalogue has no spot price. Spot is asked for by spec.pricing.spot."""
    interruptions_per_hour: NonNegative = 0.05
    """Of a spot worker; each ends the attempt, and what no checkpoint has kept is done again."""
    storage_price: NonNegative = 0.02
    """Of a GiB for a month, of data set and results at the provider."""
    storage_months: NonNegative = 1.0
    """For which they lie there."""
    egress_price: NonNegative = 0.09
    """Of a GiB that leaves the provider: the results."""
    results_gib: NonNegative = 0.2
    """Size of the results."""
    upload_mbps: Positive = 100.0
    """From here to a provider, in Mbit/s: the data set has to get there."""
    provision_seconds: NonNegative = 120.0
    """Until a rented machine is there and part of the cluster."""
    image_gib: NonNegative = 5.0
    """Of the trainer's image, compressed."""
    pull_mbps: Positive = 800.0
    """From the registry to a rented machine, in Mbit/s."""
    must_stay_here: bool = False
    """The data must not leave this place: machines elsewhere are shown, and not recommended."""
    trainings_per_month: Positive = 20.0
    """For the question whether to buy."""

    @property
    def hourly_depreciation(self) -> float | None:
        """Of a bought machine, for an hour in which it works."""
        if self.purchase_price is None:
            return None
        return self.purchase_price / (self.years * 8760 * self.utilisation)


class InvalidAssumption(UserError):
    """Names the key, the value and the way out."""


def load(file: Path | None, settings: list[str]) -> Assumptions:
    """Defaults, laid over by a file, laid over by KEY=VALUE settings, in the file's names.

    Raises:
        InvalidAssumption: a key or a value is wrong.
    """
    content: dict[str, Any] = {}
    if file is not None:
        try:
            found = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InvalidAssumption(f"{file}: {error}") from None
        if not isinstance(found, dict):
            raise InvalidAssumption(f"{file}: must be a mapping such as electricityPrice: 0.3")
        content |= found
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise InvalidAssumption(f"--assume {setting}: must be KEY=VALUE, such as electricityPrice=0.3")
        content[key] = yaml.safe_load(value)
    # YAML's 1 is a whole number, and a price may be one.
    content = {k: float(v) if type(v) is int else v for k, v in content.items()}
    try:
        return Assumptions.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        known = ", ".join(sorted(f.alias or name for name, f in Assumptions.model_fields.items()))
        why = f"there is no such assumption; there are {known}" if first["type"] == "extra_forbidden" else first["msg"]
        raise InvalidAssumption(f"--assume {key}={first['input']}: {why}") from None
