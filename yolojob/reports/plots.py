"""Draws the plots of the HTML pages. A part has the same colour in every plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import plotly.graph_objects as go

from yolojob.api.time_parts import TimePart
from yolojob.estimation.billing import BillPart
from yolojob.reports.html import styled

Part = TypeVar("Part", TimePart, BillPart)
"""A part of a stacked bar: an enum whose members have a label and a colour, in display order."""


def parts_of(rows: Mapping[str, Mapping[Part, float]]) -> list[Part]:
    """The parts that take something in any row, in display order."""
    present = {part for row in rows.values() for part, value in row.items() if value > 0}
    return [part for part in type(next(iter(present))) if part in present] if present else []


def stacked_bars(rows: Mapping[str, Mapping[Part, float]], unit: str, scale: float = 1.0) -> go.Figure:
    """A horizontal bar for each row, with a segment for each part."""
    names = list(rows)[::-1]
    parts = parts_of(rows)
    figure = go.Figure()
    for part in parts:
        values = [rows[name].get(part, 0.0) * scale for name in names]
        figure.add_bar(y=names, x=values, name=part.label, orientation="h", marker_color=part.colour)
    return styled(figure, x=unit, barmode="stack", height=max(160 + 60 * len(names), 260))


def columns(over: Sequence[float], parts: Mapping[TimePart, Sequence[float]], x: str, y: str) -> go.Figure:
    """A stacked column for each value of `over`, such as an epoch, with a segment for each part."""
    figure = go.Figure()
    for part, values in parts.items():
        figure.add_bar(x=list(over), y=list(values), name=part.label, marker_color=part.colour)
    return styled(figure, x=x, y=y, barmode="stack", bargap=0.1)


def lines(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str, y: str) -> go.Figure:
    """One line for each curve; `curves` maps its name to (x, y)."""
    figure = go.Figure()
    for name, (xs, ys) in curves.items():
        figure.add_scatter(x=list(xs), y=list(ys), name=name, mode="lines+markers" if len(xs) <= 40 else "lines")
    return styled(figure, x=x, y=y).update_yaxes(rangemode="tozero")


def points(places: Mapping[str, tuple[float, float]], front: Sequence[str], x: str, y: str) -> go.Figure:
    """Options as points, and a line through the Pareto front: those that no other option beats in both."""
    figure = go.Figure()
    line = [places[name] for name in front]
    figure.add_scatter(
        x=[p[0] for p in line],
        y=[p[1] for p in line],
        mode="lines",
        line={"dash": "dot", "color": "#8c959f"},
        name="Pareto front",
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
