"""`TimePart`: one name, one order and one colour for each part of a job's time."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support import ROOT

from yolojob.api.status import Timing
from yolojob.api.time_parts import STEP_PARTS, TimePart, in_order, known_part


def _luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb` (WCAG 2.2, https://www.w3.org/TR/WCAG22/#dfn-relative-luminance)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_time_parts_have_different_colours() -> None:
    colours = [part.colour for part in TimePart]
    assert len(set(colours)) == len(colours)


@pytest.mark.parametrize("part", TimePart)
def test_time_part_colour_is_visible_on_white_and_on_black(part: TimePart) -> None:
    luminance = _luminance(part.colour)
    assert 1.05 / (luminance + 0.05) > 1.5, "too light for a white page"
    assert (luminance + 0.05) / 0.05 > 1.5, "too dark for a black terminal"


def test_timing_parts_with_unknown_phase_count_it_as_other() -> None:
    timing = Timing(
        queued_seconds=1.0, training_seconds={"forward": 2.0, "unaccounted": 3.0, "of_another_version": 4.0}
    )
    assert timing.parts[TimePart.OTHER] == 7.0
    assert sum(timing.parts.values()) == 10.0
    assert timing.spent == {TimePart.QUEUED: 1.0, TimePart.FORWARD: 2.0, TimePart.OTHER: 7.0}


def test_timing_has_a_field_for_every_part_outside_of_steps() -> None:
    fields = {f"{part.value}_seconds" for part in TimePart if part not in STEP_PARTS}
    assert fields <= set(Timing.model_fields)


def test_in_order_sorts_by_when_parts_happen() -> None:
    assert in_order([TimePart.CHECKPOINT, TimePart.QUEUED, TimePart.STARTUP, TimePart.STAGING]) == [
        TimePart.QUEUED,
        TimePart.STAGING,
        TimePart.STARTUP,
        TimePart.CHECKPOINT,
    ]


def test_known_part_of_another_version_is_other() -> None:
    assert known_part("forward") is TimePart.FORWARD
    assert known_part("of_another_version") is TimePart.OTHER


def test_docs_describe_every_time_part_in_order() -> None:
    text = Path(ROOT / "docs" / "time.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == [part.value for part in TimePart]
