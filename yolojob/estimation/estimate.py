"""Estimates: values with a 90 % interval and a basis (measured, scaled or predicted). Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Annotated

from pydantic import Field

from yolojob.api.base import ApiModel


class Basis(enum.StrEnum):
    """What an estimate is based on, from most to least certain."""

    MEASURED = "measured"
    """This job was measured on this target."""
    SCALED = "scaled from a measurement"
    """This job was measured with another number of workers, or on another machine."""
    PREDICTED = "predicted"
    """Computed from data sheets and assumptions."""


_BASIS_ORDER = list(Basis)
NEGLIGIBLE_FRACTION = 0.05
"""Parts below this fraction of a sum do not determine the basis of the sum."""


class Estimate(ApiModel):
    """A value, and an interval that contains the true value in nine of ten cases."""

    value: Annotated[float, Field(ge=0)]
    low: Annotated[float, Field(ge=0)]
    high: Annotated[float, Field(ge=0)]
    basis: Annotated[Basis, Field(strict=False)]

    @classmethod
    def within(cls, value: float, fraction: float, basis: Basis) -> Estimate:
        """An estimate that may be off by this fraction of the value in both directions."""
        return cls(value=value, low=value * max(1 - fraction, 0.0), high=value * (1 + fraction), basis=basis)

    @classmethod
    def within_factor(cls, value: float, factor: float) -> Estimate:
        """A prediction that may be off by this factor in both directions."""
        return cls(value=value, low=value / factor, high=value * factor, basis=Basis.PREDICTED)

    def times(self, factor: float) -> Estimate:
        """The value and its interval, multiplied."""
        return Estimate(value=self.value * factor, low=self.low * factor, high=self.high * factor, basis=self.basis)

    def limit_basis(self, basis: Basis) -> Estimate:
        """The same estimate, with the less certain of its own basis and this one."""
        return self.model_copy(update={"basis": max(self.basis, basis, key=_BASIS_ORDER.index)})


def total(estimates: Iterable[Estimate]) -> Estimate:
    """The sum. The parts' errors are correlated, so their intervals add up; the least certain part that is not
    negligible determines the basis."""
    parts = list(estimates)
    value = sum(f.value for f in parts)
    bases = [f.basis for f in parts if f.value > NEGLIGIBLE_FRACTION * value] or [Basis.MEASURED]
    return Estimate(
        value=value,
        low=sum(f.low for f in parts),
        high=sum(f.high for f in parts),
        basis=max(bases, key=_BASIS_ORDER.index),
    )
