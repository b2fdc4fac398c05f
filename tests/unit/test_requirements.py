"""What the project stands on is what the lock files say, whole and unchanged."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from support import ROOT

LOCKS = sorted((ROOT / "requirements").glob("*.txt"))


def requirements(lock: Path) -> list[tuple[Requirement, int]]:
    """(requirement, number of its hashes) of each line."""
    text = re.sub(r"^\s*#.*$", "", lock.read_text(), flags=re.M).replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip()]
    return [(Requirement(line.partition(" --hash")[0]), line.count("--hash=sha256:")) for line in lines]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda p: p.stem)
def test_every_requirement_is_pinned_with_hashes_and_has_no_address(lock: Path) -> None:
    found = requirements(lock)
    assert len(found) > 10
    for requirement, hashes in found:
        assert hashes > 0, requirement
        assert str(requirement.specifier).startswith("=="), requirement
        assert requirement.url is None, requirement


def test_what_is_installed_is_what_is_locked() -> None:
    for requirement, _ in requirements(ROOT / "requirements" / "dev.txt"):
        if requirement.marker is None or requirement.marker.evaluate():
            assert version(requirement.name) in requirement.specifier, requirement


def test_the_dependencies_fit_together() -> None:
    """But for opencv-python, which opencv-python-headless stands in for."""
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    said = [line for line in done.stdout.splitlines() if line != "No broken requirements found."]
    assert len(said) == 1, done.stdout
    assert re.fullmatch(r"ultralytics \S+ requires opencv-python, which is not installed\.", said[0]), done.stdout
