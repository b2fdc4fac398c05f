"""Every query of every dashboard returns data from a real Prometheus that scraped the other tests' trainings."""

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
STEP_SECONDS = 5
"""Interval between two points."""


def resolve(expression: str, prometheus: Prometheus) -> str:
    """Fills in the variables of a query, as Grafana does for all namespaces and jobs and the whole time."""
    query = expression.replace("$__rate_interval", RATE_INTERVAL)
    query = query.replace("$__range", f"{time.time() - prometheus.began:.0f}s")
    query = query.replace("$namespace", ".*").replace("$job", ".*")
    assert "$" not in query, query
    return query


def series(panel: Panel, prometheus: Prometheus) -> Series:
    """Returns the series of a panel.

    Raises:
        AssertionError: a query returns no data.
    """
    drawn: Series = []
    for expression, template in panel.queries:
        query = resolve(expression, prometheus)
        if panel.kind in ("bars", "figure"):
            # The series of a single value may have ended with its pods; Grafana shows its last value.
            points = [(labels, [values[-1]]) for labels, values in prometheus.query_range(query, STEP_SECONDS)]
            if panel.kind == "bars":
                points = [(labels, [(time.time(), value)]) for labels, value in prometheus.query_instant(query)]
        else:
            points = prometheus.query_range(query, STEP_SECONDS)
        assert points, f"{panel.title}: no data for {query}"
        drawn += [(pictures.legend(template, labels), values) for labels, values in points]
    return drawn


@pytest.mark.parametrize("board", BOARDS, ids=[b.uid for b in BOARDS])
def test_dashboard_query_returns_data(prometheus: Prometheus | None, board: Board, tmp_path: Path) -> None:
    """The panels are drawn, too; YOLOJOB_PICTURES=docs/images keeps the pictures."""
    if prometheus is None:
        pytest.skip("Prometheus runs only in the test cluster")
    steps = prometheus.query_range("sum by (job_name) (yolojob_trainer_steps_total)", STEP_SECONDS)
    assert steps, "no training was scraped: run the other e2e tests in the same session"
    data = {panel: series(panel, prometheus) for panel in board.panels}
    folder = Path(os.environ.get("YOLOJOB_PICTURES") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    pictures.draw(board, data, folder / f"{board.uid}.png")
    assert (folder / f"{board.uid}.png").stat().st_size > 20_000


def test_dashboard_legend_names_existing_labels() -> None:
    """`topk` keeps the labels of its argument."""
    for board in BOARDS:
        for panel in board.panels:
            for expression, template in panel.queries:
                for label in re.findall(r"{{(\w+)}}", template):
                    assert label in expression or f"yolojob_job_{label}" in expression or "topk" in expression, (
                        panel.title,
                        label,
                    )
