"""Lists the commands that README and docs show, and how each of them is tested."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from support import ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "helm" / "yolojob" / "README.md",
    *sorted(p for p in (ROOT / "docs").glob("**/*.md") if p.name != "cli.md"),
]
_BLOCK = re.compile(r"^```console\n(.*?)^```", re.M | re.S)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How the commands that match a pattern are tested."""

    pattern: str
    how: Literal["here", "cluster", "elsewhere", "covered"]
    """here: runs on this machine. cluster: runs in the test cluster. elsewhere: cannot run in the tests.
    covered: another test runs it."""
    why: str = ""
    """elsewhere: the reason. covered: file and name of the test."""


RULES = [
    Rule(pattern=r"make (demo|test)", how="elsewhere", why="they run the tests themselves"),
    Rule(pattern=r"docker |kind |minikube ", how="elsewhere", why="the test machine has no Docker engine"),
    Rule(pattern=r"pip install ", how="elsewhere", why="the package is not published; the tests run the checkout"),
    Rule(
        pattern=r"cd tests|eval |python3 -m devcluster ",
        how="elsewhere",
        why="they start and stop the test cluster",
    ),
    Rule(
        pattern=r"helm install .*(REGISTRY|presets/kind)",
        how="elsewhere",
        why="names images that the test machine cannot pull",
    ),
    Rule(pattern=r"helm install ", how="covered", why="tests/e2e/conftest.py::operator"),
    Rule(pattern=r"helm test ", how="covered", why="tests/e2e/test_chart_release.py::test_helm_test_trains"),
    Rule(
        pattern=r"yolojob bench .*--tune",
        how="covered",
        why="tests/unit/test_autotune.py::test_bench_command_with_tune_prints_the_table_and_leaves_no_files",
    ),
    Rule(
        pattern=r"yolojob scale ",
        how="covered",
        why="tests/cluster/test_client_and_cli.py::test_client_suspends_scales_and_resumes_a_job",
    ),
    Rule(pattern=r"yolojob (validate|run|bench|estimate|report|compare) ", how="here"),
    Rule(pattern=r"(kubectl|yolojob) ", how="cluster"),
]


def commands() -> Iterator[tuple[Path, str]]:
    """Yields (page, command) in the order of the pages, each command once."""
    seen = set()
    for page in PAGES:
        for block in _BLOCK.findall(page.read_text(encoding="utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                for part in re.sub(r"\s+#.*$", "", line).split("&&"):
                    command = " ".join(part.split())
                    if command and command not in seen:
                        seen.add(command)
                        yield page, command


def rule(command: str) -> Rule | None:
    """Returns the first rule that matches a command."""
    return next((r for r in RULES if re.match(r.pattern, command)), None)
