"""The committed files equal what `make generate` writes. tests/cluster checks what Helm renders."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from generate import FILES

pytestmark = pytest.mark.processes


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_committed_file_equals_the_generated_one(path: Path) -> None:
    assert path.read_text() == FILES[path](), "run `make generate`"


def test_dashboards_query_only_metrics_of_the_trainer_that_exist() -> None:
    """A renamed metric leaves an empty panel."""
    from dashboards import BOARDS
    from yolojob_trainer.observability.metrics import TrainerMetrics

    metrics = TrainerMetrics(namespace="a", job_name="b", rank=0)
    known = {sample for family in metrics.registry.collect() for sample in names(family.name, family.type)}
    queried = {
        name
        for board in BOARDS
        for panel in board.panels
        for query, _ in panel.queries
        for name in re.findall(r"yolojob_trainer_\w+", query)
    }
    assert queried
    assert queried <= known


def names(family: str, kind: str) -> list[str]:
    """Names of the series of a metric."""
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "info": ["_info"]}
    return [f"{family}{suffix}" for suffix in suffixes.get(kind, [""])]
