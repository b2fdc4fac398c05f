"""`Reason`: the reasons of conditions, events and failures are defined once and documented."""

from __future__ import annotations

import ast
import re

import pytest
from support import ROOT

from yolojob.api.reasons import Reason

PACKAGES = ("yolojob", "operator/yolojob_operator", "trainer/yolojob_trainer")
CALLS = (
    "BadInput",
    "Failure",
    "Interrupted",
    "Obstacle",
    "PeerLost",
    "TrainerError",
    "condition",
    "end_attempt",
    "event",
)
"""Functions and classes that take a reason."""


def _documented() -> set[str]:
    """Returns the words of the reason column in docs/troubleshooting.md."""
    rows = re.findall(r"^\| [^|]+ \| ([^|]+) \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    return {word for row in rows for word in re.findall(r"\w+", row)}


@pytest.mark.parametrize("reason", Reason)
def test_troubleshooting_page_has_a_row_for_reason(reason: Reason) -> None:
    assert reason.value in _documented()


def test_packages_spell_no_reason_as_a_string() -> None:
    spelled = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in CALLS:
                    arguments = [*node.args, *(k.value for k in node.keywords if k.arg == "reason")]
                    spelled += [
                        f"{path.relative_to(ROOT)}:{a.lineno}: {a.value}"
                        for a in arguments
                        if isinstance(a, ast.Constant) and a.value in set(Reason) - {"Running", "Suspended", "Failed"}
                    ]
    assert spelled == []
