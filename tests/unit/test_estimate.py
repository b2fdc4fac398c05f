"""`Estimate`: sums of values with intervals, and what they are based on."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from yolojob.estimation.estimate import Basis, Estimate, total


def test_total_has_the_basis_of_its_weakest_part_that_matters() -> None:
    large, small = Estimate.within(100.0, 0.1, Basis.MEASURED), Estimate.within_factor(1.0, 2.0)
    assert total([large, small]).basis is Basis.MEASURED
    assert total([large, small.times(50)]).basis is Basis.PREDICTED


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e9), max_size=6))
def test_total_lies_within_its_interval(values: list[float]) -> None:
    result = total(Estimate.within(v, 0.2, Basis.SCALED) for v in values)
    assert result.low <= result.value * (1 + 1e-9)
    assert result.value <= result.high * (1 + 1e-9) + 1e-9
