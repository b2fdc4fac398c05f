"""Field types of the API: quantities as in Kubernetes."""

from __future__ import annotations

import pytest

from yolojob.api.fields import parse_quantity


@pytest.mark.parametrize(
    ("text", "value"),
    [("2", 2), ("500m", 0.5), ("4Gi", 4 << 30), ("1e3", 1000), ("1.5k", 1500), ("0", 0), ("128974848000m", 128974848)],
)
def test_parse_quantity_returns_the_value(text: str, value: float) -> None:
    assert parse_quantity(text) == value


@pytest.mark.parametrize("text", ["", "Gi", "4 Gi", "4gi", "-1", "1..2", "inf", "1e999"])
def test_parse_quantity_of_malformed_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        parse_quantity(text)
