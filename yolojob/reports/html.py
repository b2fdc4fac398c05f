"""One self-contained HTML page: sections with words, tables and plots. Nothing is fetched from anywhere."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import plotly.graph_objects as go
import plotly.offline

HEIGHT = 380
CONFIG = {"responsive": True, "displayModeBar": False}


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading, and below it what there is of words, a table and a plot."""

    title: str
    words: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    figure: go.Figure | None = None


_TEMPLATE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{{ title }}</title>
<style>
  :root { color-scheme: light; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --accent: #0969da; }
  body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); margin: 0 auto; max-width: 1160px; padding: 1rem; }
  h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
  p { margin: .4rem 0; overflow-wrap: anywhere; }
  .lead { font-size: 1.05rem; border-left: 4px solid var(--accent); padding-left: .8rem; }
  .soft { color: var(--soft); font-size: .9rem; }
  .scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; width: 100%; }
  th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
  th { color: var(--soft); font-weight: 600; white-space: nowrap; }
  .plot { width: 100%; min-width: 0; }
</style>
<script>{{ library }}</script>
</head>
<body>
<h1>{{ title }}</h1>
{% for line in lead %}<p class="lead">{{ line }}</p>
{% endfor %}
{% for section in sections %}
<section>
<h2>{{ section.title }}</h2>
{% for line in section.words %}<p>{{ line }}</p>
{% endfor %}
{% if section.rows %}<div class="scroll"><table>
<thead><tr>{% for cell in section.columns %}<th>{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in section.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</tbody>
</table></div>{% endif %}
{% if section.figure is not none %}<div class="plot" id="plot-{{ loop.index }}"></div>{% endif %}
</section>
{% endfor %}
<p class="soft">{{ foot }}</p>
<script>
const figures = {{ figures }};
const narrow = window.innerWidth < 600;
for (const [id, figure] of Object.entries(figures)) {
  if (narrow) {
    figure.layout.margin = {l: 48, r: 8, t: 16, b: 40};
    figure.layout.legend = {orientation: "h", y: -0.25, font: {size: 10}};
    figure.layout.height = figure.layout.height + 120;
  }
  Plotly.newPlot(id, figure.data, figure.layout, {{ config }});
}
</script>
</body>
</html>
"""


def render(title: str, lead: list[str], sections: list[Section], foot: str) -> str:
    """The page. What comes from users is escaped."""
    figures = {
        f"plot-{i}": json.loads(section.figure.to_json())
        for i, section in enumerate(sections, 1)
        if section.figure is not None
    }
    environment = jinja2.Environment(autoescape=True, trim_blocks=True)
    return environment.from_string(_TEMPLATE).render(
        title=title,
        lead=lead,
        sections=sections,
        foot=foot,
        library=markupsafe.Markup(plotly.offline.get_plotlyjs()),  # noqa: S704 - plotly's own
        figures=_script(figures),
        config=_script(CONFIG),
    )


def _script(content: Any) -> Any:
    """JSON that may stand in a script: no text in it ends the script."""
    return jinja2.utils.htmlsafe_json_dumps(content)


def styled(figure: go.Figure, *, x: str = "", y: str = "", height: int = HEIGHT, **layout: Any) -> go.Figure:
    """A figure in the page's style, with the names of its axes."""
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
