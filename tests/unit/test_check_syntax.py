"""tools/check_syntax.py: reports files that do not parse."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from check_syntax import error
from support import ROOT


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.yaml", "a: [1"), ("a.yml", "a: b: c"), ("a.yaml", "a: 1\n---\nb: ]"), ("a.toml", "a ="), ("a.json", "{,}")],
)
def test_error_names_the_file_that_is_not_valid(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert str(error(path)).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("name", "text"), [("a.yaml", "a: 1\n---\nb: 2"), ("a.toml", "a = 1"), ("a.json", "{}"), ("a.txt", "{,}")]
)
def test_error_is_none_for_valid_and_other_files(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert error(path) is None


@pytest.mark.parametrize(("text", "status"), [("{}", 0), ("{,}", 1)])
def test_command_fails_only_for_a_file_that_is_not_valid(tmp_path: Path, text: str, status: int) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    command = [sys.executable, str(ROOT / "tools" / "check_syntax.py"), str(path)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == status
