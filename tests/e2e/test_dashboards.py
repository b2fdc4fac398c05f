"""Every query of every dashboard, against what a real Prometheus has scraped while the other tests trained."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest
from dashboards import BOARDS, Board, Panel
from support import pictures
from support.pictures import Series
from support.prometheus import RATE_INTERVAL, Prometheus

pytestmark = [pytest.mark.usefixtures("operator"), pytest.mark.timeout(600)]
STEP = 5
"""Seconds between points."""


def resolve(expression: str, prometheus: Prometheus) -> str:
    """What Grafana makes of a query: all namespaces and jobs, the whole time."""
    found = expression.replace("$__rate_interval", RATE_INTERVAL)
    found = found.replace("$__range", f"{time.time() - prometheus.began:.0f}s")
    found = found.replace("$namespace", ".*").replace("$job", ".*")
    assert "$" not in found, found
    return found


def series(panel: Panel, prometheus: Prometheus) -> Series:
    found: Series = []
    for expression, template in panel.queries:
        query = resolve(expression, prometheus)
        if panel.kind in ("bars", "figure"):
            # A figure's series may have ended with its pods: Grafana shows the moment at the end of the chosen time.
            points = [(labels, [values[-1]]) for labels, values in prometheus.query_range(query, STEP)]
            if panel.kind == "bars":
                points = [(labels, [(time.time(), value)]) for labels, value in prometheus.query_instant(query)]
        else:
            points = prometheus.query_range(query, STEP)
        assert points, f"{panel.title}: no data for {query}"
        found += [(pictures.legend(template, labels), values) for labels, values in points]
    return found


@pytest.mark.parametrize("board", BOARDS, ids=[b.uid for b in BOARDS])
def test_every_query_returns_data(prometheus: Prometheus | None, board: Board, tmp_path: Path) -> None:
    """And is drawn: YOLOJOB_PICTURES=docs/images keeps the pictures."""
    if prometheus is None:
        pytest.skip("scrapes the test cluster's pods")
    steps = prometheus.query_range("sum by (job_name) (yolojob_trainer_steps_total)", STEP)
    assert steps, "other tests of this session train; alone, this one has nothing to look at"
    data = {panel: series(panel, prometheus) for panel in board.panels}
    folder = Path(os.environ.get("YOLOJOB_PICTURES") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    pictures.draw(board, data, folder / f"{board.uid}.png")
    assert (folder / f"{board.uid}.png").stat().st_size > 20_000


def test_legends_name_labels_that_there_are() -> None:
    for board in BOARDS:
        for panel in board.panels:
            for expression, template in panel.queries:
                for label in re.findall(r"{{(\w+)}}", template):
                    assert label in expression or f"yolojob_job_{label}" in expression or "topk" in expression, (
                        panel.title,
                        label,
                    )
