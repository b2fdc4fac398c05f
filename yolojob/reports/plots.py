"""Plots of a page. Each takes plain figures, and one colour means the same part everywhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import plotly.graph_objects as go

from yolojob.reports.html import styled

COLOURS = {
    "queued": "#8c959f",
    "scheduling": "#afb8c1",
    "image pull": "#6e7781",
    "rendezvous": "#d0d7de",
    "staging": "#9a6700",
    "startup": "#bf8700",
    "data_wait": "#d4a72c",
    "h2d": "#eac54f",
    "forward": "#1a7f37",
    "loss": "#4ac26b",
    "backward": "#0969da",
    "all_reduce": "#8250df",
    "optimizer": "#54aeff",
    "ema": "#b6e3ff",
    "validation": "#24292f",
    "checkpoint": "#cf222e",
    "unaccounted": "#ffaba8",
    "lost": "#a40e26",
    "restart": "#fa4549",
    "shutdown": "#c6cbd1",
    "suspended": "#eaeef2",
    "machines": "#0969da",
    "electricity": "#d4a72c",
    "repeated work": "#cf222e",
    "storage": "#8250df",
    "egress": "#bf8700",
    "people": "#1a7f37",
}


def in_order(parts: Iterable[str]) -> list[str]:
    """Each part once, in the order in which they happen."""
    order = list(COLOURS)
    return sorted(dict.fromkeys(parts), key=lambda part: order.index(part) if part in order else len(order))


def stacked(rows: Mapping[str, Mapping[str, float]], unit: str, scale: float = 1.0) -> go.Figure:
    """A horizontal bar for each row, with a stretch for each part."""
    names = list(rows)[::-1]
    parts = in_order(part for row in rows.values() for part, value in row.items() if value > 0)
    figure = go.Figure()
    for part in parts:
        values = [rows[name].get(part, 0.0) * scale for name in names]
        figure.add_bar(y=names, x=values, name=part, orientation="h", marker_color=COLOURS.get(part))
    return styled(figure, x=unit, barmode="stack", height=max(160 + 60 * len(names), 260))


def columns(over: Sequence[float], parts: Mapping[str, Sequence[float]], x: str, y: str) -> go.Figure:
    """Stacked columns: of each epoch, its parts."""
    figure = go.Figure()
    for part, values in parts.items():
        figure.add_bar(x=list(over), y=list(values), name=part, marker_color=COLOURS.get(part))
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
