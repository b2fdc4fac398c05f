"""A comparison as one picture, for slides and chats."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from yolojob.estimation.option import pareto
from yolojob.reports.plots import COLOURS, in_order

if TYPE_CHECKING:
    from yolojob.reports.comparison import Comparison


def draw(found: Comparison, path: Path) -> None:
    """Time and money, split; one against the other; with more workers."""
    from yolojob.reports.comparison import time_unit

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


def _stack(axes: Axes, rows: dict[str, dict[str, float]]) -> None:
    names = list(rows)[::-1]
    left = [0.0] * len(names)
    for part in in_order(p for row in rows.values() for p, value in row.items() if value > 0):
        values = [rows[name].get(part, 0.0) for name in names]
        axes.barh(names, values, left=left, label=part, color=COLOURS.get(part))
        left = [a + b for a, b in zip(left, values, strict=True)]
    if names:
        axes.legend(fontsize=7, ncols=6, loc="upper center", bbox_to_anchor=(0.5, -0.14))
