"""Draws a comparison as one picture, for slides and chats."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

from yolojob.reports.comparison import Comparison

mpl.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from yolojob.estimation.recommendation import pareto
from yolojob.format import time_unit
from yolojob.reports.plots import Part, parts_of


def draw_comparison(comparison: Comparison, path: Path) -> None:
    """Draw time and money by part, time against money, and time with more workers."""
    unit, scale = time_unit(max(o.seconds for o in comparison.options))
    figure, ((time_axes, money_axes), (pareto_axes, scaling_axes)) = plt.subplots(
        2, 2, figsize=(14, 6 + len(comparison.options)), layout="constrained"
    )
    figure.suptitle(f"{comparison.name}: where to train it")
    _stack(time_axes, {o.name: {p: f.value * scale for p, f in o.predicted.parts.items()} for o in comparison.options})
    time_axes.set(title="Time", xlabel=unit)
    priced = [o for o in comparison.options if o.cost is not None]
    currency = comparison.options[0].bill.currency
    _stack(money_axes, {o.name: {p: f.value for p, f in o.bill.parts.items()} for o in priced})
    money_axes.set(title="Money" if priced else "Money: no price", xlabel=currency)
    front = pareto(comparison.options)
    pareto_axes.plot([o.seconds * scale for o in front], [o.cost or 0.0 for o in front], ":", color="grey")
    for option in priced:
        pareto_axes.plot(option.seconds * scale, option.cost or 0.0, "o", markersize=9)
        right = option.seconds > max(o.seconds for o in priced) / 2
        pareto_axes.annotate(
            option.name,
            (option.seconds * scale, option.cost or 0.0),
            xytext=(-9 if right else 9, 7),
            textcoords="offset points",
            ha="right" if right else "left",
        )
    pareto_axes.set(title="Time against money", xlabel=unit, ylabel=currency, xlim=(0, None), ylim=(0, None))
    pareto_axes.margins(0.25)
    for option in comparison.options:
        counts = sorted(option.scaling)
        scaling_axes.plot(counts, [option.scaling[n].total.value * scale for n in counts], "o-", label=option.name)
    scaling_axes.set(title="With more workers", xlabel="workers", ylabel=unit, ylim=(0, None))
    scaling_axes.legend(fontsize=8)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _stack(axes: Axes, rows: dict[str, dict[Part, float]]) -> None:
    names = list(rows)[::-1]
    left = [0.0] * len(names)
    for part in parts_of(rows):
        values = [rows[name].get(part, 0.0) for name in names]
        axes.barh(names, values, left=left, label=part.label, color=part.colour)
        left = [a + b for a, b in zip(left, values, strict=True)]
    if names:
        axes.legend(fontsize=7, ncols=6, loc="upper center", bbox_to_anchor=(0.5, -0.14))
