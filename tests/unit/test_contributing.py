"""CONTRIBUTING.md: every dependency has a line that says what it is for."""

from __future__ import annotations

import re
import tomllib

from support import ROOT

_NAME = re.compile(r"^[A-Za-z0-9-]+")


def declared() -> set[str]:
    """Names of the packages that pyproject.toml asks for, in any extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {match[0] for group in groups for line in group if (match := _NAME.match(line))}
    return names - {"yolojob"}


def explained() -> set[str]:
    """Names in the first column of the table of dependencies."""
    section = (ROOT / "CONTRIBUTING.md").read_text().split("## Dependencies")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")][2:]
    return {name.strip() for row in rows for name in row.split(",")}


def test_dependencies_table_lists_exactly_the_declared_packages() -> None:
    assert declared() == explained()
