"""The report of a benchmark run, and the cache folder that its measurements share."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.harness import Report, cpu


@pytest.fixture(scope="session")
def report() -> Iterator[Report]:
    report = Report()
    yield report
    if out := os.environ.get("YOLOJOB_BENCH_OUT"):
        machine = {"cpu": cpu(), "cores": os.cpu_count(), "python": platform.python_version()}
        Path(out).write_text(json.dumps({"machine": machine, "rows": report.rows}, indent=1))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")
