"""A comparison as one picture, for slides and chats."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

from yolojob.reports.comparison import Comparison

mpl.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from yolojob.estimation.recommendation import pareto
from yolojob.reports.plots import Part, parts_of


def draw_comparison(found: Comparison, path: Path) -> None:
    """Time and money, split; one against the other; with more workers."""
    from yolojob.format import time_unit

    unit, scale = time_unit(max(o.seconds for o in found.options))
    figure, ((time, money), (both, more)) = plt.subplots(
        2, 2, figsize=(14, 6 + len(found.options)), layout="constrained"
    )
    figure.suptitle(f"{found.name}: where to train it")
    _stack(time, {o.name: {p: f.value * scale for p, f in o.predicted.parts.items()} for o in found.options})
    time.set(title="Time", xlabel=unit)
    priced = [o for o in found.options if o.cost is not None]
    currency = found.options[0].bill.currency
    _stack(money, {o.name: {p: f.value for p, f in o.bill.parts.items()} for o in priced})
    money.set(title="Money" if priced else "Money: no price", xlabel=currency)
    front = pareto(found.options)
    both.plot([o.seconds * scale for o in front], [o.cost or 0.0 for o in front], ":", color="grey")
    for option in priced:
        both.plot(option.seconds * scale, option.cost or 0.0, "o", markersize=9)
        right = option.seconds > max(o.seconds for o in priced) / 2
        both.annotate(
            option.name,
            (option.seconds * scale, option.cost or 0.0),
            xytext=(-9 if right else 9, 7),
            textcoords="offset points",
            ha="right" if right else "left",
        )
    both.set(title="Time against money", xlabel=unit, ylabel=currency, xlim=(0, None), ylim=(0, None))
    both.margins(0.25)
    for option in found.options:
        counts = sorted(option.scaling)
        more.plot(counts, [option.scaling[n].total.value * scale for n in counts], "o-", label=option.name)
    more.set(title="With more workers", xlabel="workers", ylabel=unit, ylim=(0, None))
    more.legend(fontsize=8)
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
