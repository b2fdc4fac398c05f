"""Options and output that the commands share."""

from __future__ import annotations

import json

import pytest
import yaml

from yolojob.api.time_parts import TimePart
from yolojob.cli.options import FigureOutput, dump


@pytest.mark.parametrize("output", [FigureOutput.JSON, FigureOutput.YAML])
def test_dump_of_enum_members_prints_their_values(output: FigureOutput, capsys: pytest.CaptureFixture[str]) -> None:
    dump({"limit": TimePart.VALIDATION, "parts": {TimePart.FORWARD: 1.5}}, output)
    printed = capsys.readouterr().out
    expected = {"limit": "validation", "parts": {"forward": 1.5}}
    assert (json.loads if output is FigureOutput.JSON else yaml.safe_load)(printed) == expected
