"""Renders a self-contained HTML page of sections with text, tables and plots. It loads nothing from the network."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import plotly.graph_objects as go
import plotly.offline

PLOT_HEIGHT_PIXELS = 380
PLOT_CONFIG = {"responsive": True, "displayModeBar": False}


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading, followed by paragraphs, a table, a plot and a picture, each optional."""

    title: str
    paragraphs: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    figure: go.Figure | None = None
    picture: str | None = None
    """A JPEG in base64."""


def render(title: str, lead: list[str], sections: list[Section], foot: str) -> str:
    """The page as text. All texts are escaped."""
    figures = {
        f"plot-{i}": json.loads(section.figure.to_json())
        for i, section in enumerate(sections, 1)
        if section.figure is not None
    }
    loader = jinja2.PackageLoader("yolojob.reports", "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True)
    return environment.get_template("page.html.j2").render(
        title=title,
        lead=lead,
        sections=sections,
        foot=foot,
        library=markupsafe.Markup(plotly.offline.get_plotlyjs()),  # noqa: S704 - plotly's own code
        figures=_script(figures),
        config=_script(PLOT_CONFIG),
    )


def _script(content: Any) -> Any:
    """JSON that is safe inside a <script> element: no text in it can end the element."""
    return jinja2.utils.htmlsafe_json_dumps(content)


def styled(
    figure: go.Figure, *, x: str = "", y: str = "", height: int = PLOT_HEIGHT_PIXELS, **layout: Any
) -> go.Figure:
    """Apply the page's style and the axes' names to a figure."""
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 64, "r": 16, "t": 16, "b": 48},
        font={"family": "system-ui, sans-serif", "size": 12},
        legend={"orientation": "h", "y": -0.2},
        xaxis_title=x,
        yaxis_title=y,
        **layout,
    )
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True)
    return figure


def save(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
