"""A number that says how it is known, and how far it may be off. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Annotated

from pydantic import Field

from yolojob.api.base import ApiModel


class Basis(enum.StrEnum):
    """How a figure is known, from best to worst."""

    MEASURED = "measured"
    """This job was measured on this target."""
    SCALED = "scaled from a measurement"
    """Of this job, with other workers or on another machine."""
    PREDICTED = "predicted"
    """From data sheets and assumptions."""


_ORDER = list(Basis)
NEGLIGIBLE = 0.05
"""A part of a sum that is smaller than this does not decide how the sum is known."""


class Estimate(ApiModel):
    """A value, and an interval in which the truth is expected in nine cases of ten."""

    value: Annotated[float, Field(ge=0)]
    low: Annotated[float, Field(ge=0)]
    high: Annotated[float, Field(ge=0)]
    basis: Annotated[Basis, Field(strict=False)]

    @classmethod
    def within(cls, value: float, part: float, basis: Basis) -> Estimate:
        """The value, give or take this part of it."""
        return cls(value=value, low=value * max(1 - part, 0.0), high=value * (1 + part), basis=basis)

    @classmethod
    def factor(cls, value: float, factor: float) -> Estimate:
        """A prediction that may be off by this factor."""
        return cls(value=value, low=value / factor, high=value * factor, basis=Basis.PREDICTED)

    def times(self, factor: float) -> Estimate:
        return Estimate(value=self.value * factor, low=self.low * factor, high=self.high * factor, basis=self.basis)

    def at_worst(self, basis: Basis) -> Estimate:
        """No better known than this."""
        return self.model_copy(update={"basis": max(self.basis, basis, key=_ORDER.index)})


def total(figures: Iterable[Estimate]) -> Estimate:
    """The sum. Its parts err together, so their intervals add up; the worst part that counts says how the sum is known."""
    parts = list(figures)
    value = sum(f.value for f in parts)
    bases = [f.basis for f in parts if f.value > NEGLIGIBLE * value] or [Basis.MEASURED]
    return Estimate(
        value=value,
        low=sum(f.low for f in parts),
        high=sum(f.high for f in parts),
        basis=max(bases, key=_ORDER.index),
    )
