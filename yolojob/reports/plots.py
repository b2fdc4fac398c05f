"""Plots of a page. Each takes plain figures, and one colour means the same part everywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import plotly.graph_objects as go

from yolojob.api.time_parts import TimePart
from yolojob.estimation.billing import BillPart
from yolojob.reports.html import styled

Part = TypeVar("Part", TimePart, BillPart)
"""What a stacked bar is made of: parts with a label and a colour, in an order of their own."""


def parts_of(rows: Mapping[str, Mapping[Part, float]]) -> list[Part]:
    """The parts that any row has, each once, in their own order."""
    there = {part for row in rows.values() for part, value in row.items() if value > 0}
    return [part for part in type(next(iter(there))) if part in there] if there else []


def stacked_bars(rows: Mapping[str, Mapping[Part, float]], unit: str, scale: float = 1.0) -> go.Figure:
    """A horizontal bar for each row, with a stretch for each part."""
    names = list(rows)[::-1]
    parts = parts_of(rows)
    figure = go.Figure()
    for part in parts:
        values = [rows[name].get(part, 0.0) * scale for name in names]
        figure.add_bar(y=names, x=values, name=part.label, orientation="h", marker_color=part.colour)
    return styled(figure, x=unit, barmode="stack", height=max(160 + 60 * len(names), 260))


def columns(over: Sequence[float], parts: Mapping[TimePart, Sequence[float]], x: str, y: str) -> go.Figure:
    """Stacked columns: of each epoch, its parts."""
    figure = go.Figure()
    for part, values in parts.items():
        figure.add_bar(x=list(over), y=list(values), name=part.label, marker_color=part.colour)
    return styled(figure, x=x, y=y, barmode="stack", bargap=0.1)


def lines(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str, y: str) -> go.Figure:
    """Curves, by name: (x, y)."""
    figure = go.Figure()
    for name, (xs, ys) in curves.items():
        figure.add_scatter(x=list(xs), y=list(ys), name=name, mode="lines+markers" if len(xs) <= 40 else "lines")
    return styled(figure, x=x, y=y).update_yaxes(rangemode="tozero")


def points(places: Mapping[str, tuple[float, float]], front: Sequence[str], x: str, y: str) -> go.Figure:
    """Places as points, and a line through those that nothing else beats in both."""
    figure = go.Figure()
    line = [places[name] for name in front]
    figure.add_scatter(
        x=[p[0] for p in line],
        y=[p[1] for p in line],
        mode="lines",
        line={"dash": "dot", "color": "#8c959f"},
        name="nothing is faster and cheaper",
    )
    for name, (horizontal, vertical) in places.items():
        figure.add_scatter(
            x=[horizontal],
            y=[vertical],
            name=name,
            mode="markers",
            marker={"size": 14, "symbol": "circle" if name in front else "circle-open"},
        )
    return styled(figure, x=x, y=y).update_yaxes(rangemode="tozero").update_xaxes(rangemode="tozero")
