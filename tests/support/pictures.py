"""Draws dashboards with matplotlib, for the documentation: the same queries and panels as in Grafana."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from dashboards import Board, Panel
from matplotlib.axes import Axes
from matplotlib.gridspec import GridSpec

from support.prometheus import Points

Series = list[tuple[str, Points]]
"""(legend, points); one point for each series if the panel shows a moment."""
UNITS = {"s": "s", "percentunit": "", "bytes": "B", "reqps": "/s", "short": ""}
COLUMNS = 24
"""Width of a dashboard, in grid columns of Grafana."""
MAX_LEGEND_ENTRIES = 12


def legend(template: str, labels: dict[str, str]) -> str:
    """Fills a legend template with labels, as Grafana does."""
    return re.sub(r"{{(\w+)}}", lambda match: labels.get(match[1], ""), template).strip() or "value"


def draw(board: Board, data: dict[Panel, Series], path: Path) -> None:
    """Draws all panels of a board into one PNG file."""
    rows: list[list[Panel]] = []
    for _, panels in board.rows:
        rows.append([])
        for panel in panels:
            if sum(p.width for p in rows[-1]) + panel.width > COLUMNS:
                rows.append([])
            rows[-1].append(panel)
    heights = [1.2 if all(p.kind == "figure" for p in row) else 3 for row in rows]
    figure = plt.figure(figsize=(18, sum(heights) + 1), layout="constrained")
    figure.suptitle(board.title, fontsize=16)
    grid = GridSpec(len(rows), COLUMNS, figure=figure, height_ratios=heights)
    for i, row in enumerate(rows):
        left = 0
        for panel in row:
            _panel(figure.add_subplot(grid[i, left : left + panel.width]), panel, data[panel])
            left += panel.width
    figure.savefig(path, dpi=70)
    plt.close(figure)


def _panel(axes: Axes, panel: Panel, series: Series) -> None:
    axes.set_title(panel.title, fontsize=10)
    axes.tick_params(labelsize=8)
    if panel.kind == "figure":
        axes.axis("off")
        text = "\n".join(f"{_number(points[-1][1], panel.unit)}  {name}" for name, points in series[:3])
        axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=11)
    elif panel.kind == "bars":
        shown = series[:MAX_LEGEND_ENTRIES][::-1]
        axes.barh(range(len(shown)), [points[-1][1] for _, points in shown], alpha=0.6)
        for i, (name, points) in enumerate(shown):  # outside the axes, long names would leave no room for the bars
            axes.text(0, i, f" {name}: {_number(points[-1][1], panel.unit)}", va="center", fontsize=8)
        axes.set_yticks([])
        axes.margins(x=0.15)
    else:
        _over_time(axes, panel, series)


def _over_time(axes: Axes, panel: Panel, series: Series) -> None:
    moments = sorted({t for _, points in series for t, _ in points})
    minutes = [(t - moments[0]) / 60 for t in moments]
    rows: list[list[Any]] = []
    for _, points in series:
        known = dict(points)
        rows.append([known.get(t, math.nan) for t in moments])
    names = [name for name, _ in series]
    if panel.kind == "stacked":
        axes.stackplot(minutes, [[0.0 if math.isnan(v) else v for v in row] for row in rows], labels=names, step="mid")
    else:
        for name, row in zip(names, rows, strict=True):
            axes.plot(minutes, row, label=name, linewidth=1.2)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("minutes", fontsize=8)
    axes.set_ylabel(UNITS[panel.unit], fontsize=8)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[:MAX_LEGEND_ENTRIES], labels[:MAX_LEGEND_ENTRIES], fontsize=6, loc="upper left", ncols=2)


def _number(value: float, unit: str) -> str:
    return f"{value:.1%}" if unit == "percentunit" else f"{value:,.4g} {UNITS[unit]}".strip()
