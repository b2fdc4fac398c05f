"""The lock files pin every dependency, and the environment has what they pin."""

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
    """Returns (requirement, number of its hashes) for each line."""
    text = re.sub(r"^\s*#.*$", "", lock.read_text(), flags=re.M).replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip()]
    return [(Requirement(line.partition(" --hash")[0]), line.count("--hash=sha256:")) for line in lines]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda p: p.stem)
def test_lock_file_pins_every_requirement_with_hashes(lock: Path) -> None:
    pinned = requirements(lock)
    assert len(pinned) > 10
    for requirement, hashes in pinned:
        assert hashes > 0, requirement
        assert str(requirement.specifier).startswith("=="), requirement
        assert requirement.url is None, f"{requirement}: not from the package index"


def test_environment_has_the_locked_versions() -> None:
    for requirement, _ in requirements(ROOT / "requirements" / "dev.txt"):
        if requirement.marker is None or requirement.marker.evaluate():
            assert version(requirement.name) in requirement.specifier, requirement


@pytest.mark.processes
def test_environment_misses_only_opencv_python() -> None:
    """opencv-python-headless replaces it: see pyproject.toml, tool.uv."""
    command = [sys.executable, "-m", "uv", "pip", "check", "--python", sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    problems = [line for line in done.stderr.splitlines() if line.startswith("The package")]
    assert len(problems) == 1, done.stderr
    assert re.fullmatch(r"The package `ultralytics` requires `opencv-python.*`, but it's not installed", problems[0])
