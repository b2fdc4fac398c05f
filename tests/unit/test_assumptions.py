"""Assumptions of an estimate, from a file and from `--assume`."""

from __future__ import annotations

from pathlib import Path

import pytest

from yolojob.estimation import assumptions
from yolojob.estimation.assumptions import InvalidAssumption


def test_load_lets_the_command_line_replace_the_file(tmp_path: Path) -> None:
    path = tmp_path / "assumed.yaml"
    path.write_text("electricityPrice: 0.3\nyears: 4\n")
    assumed = assumptions.load(path, ["years=5", "mustStayHere=true"])
    assert (assumed.electricity_price, assumed.years, assumed.must_stay_here) == (0.3, 5.0, True)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("years", "KEY=VALUE"),
        ("yeers=3", "unknown assumption"),
        ("years=-3", "greater than 0"),
        ("utilisation=7", "less than or equal to 1"),
        ("pue=abc", "valid number"),
        ("mustStayHere=perhaps", "boolean"),
    ],
)
def test_load_of_invalid_assumption_names_the_fault(setting: str, message: str) -> None:
    with pytest.raises(InvalidAssumption, match=message):
        assumptions.load(None, [setting])
