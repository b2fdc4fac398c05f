"""The HTML page of a comparison, and the picture beside it."""

from __future__ import annotations

from pathlib import Path

from yolojob.estimation.estimate import Estimate
from yolojob.estimation.option import Option, cost_text
from yolojob.estimation.recommendation import flattening, pareto
from yolojob.format import rough_duration, time_unit
from yolojob.reports import comparison_png, html, plots
from yolojob.reports.comparison import Comparison
from yolojob.reports.html import Section
from yolojob.reports.plots import Part

REACHED = (0.5, 0.8, 0.9, 0.95, 1.0)
"""Parts of the best mAP whose costs are shown."""


def write_comparison_page(found: Comparison, page: Path) -> None:
    """Write the page, and the picture beside it."""
    foot = "Made by yolojob compare. Times are expectations; the interval of each is where nine of ten should lie."
    html.save(page, html.render(f"{found.name}: where to train it", [found.recommendation], _sections(found), foot))
    comparison_png.draw_comparison(found, page.with_suffix(".png"))


def _sections(found: Comparison) -> list[Section]:
    unit, scale = time_unit(max(o.seconds for o in found.options))
    sections = [
        Section(
            title="Places",
            columns=["place", "time", "from … to", "img/s", "cost", "per epoch", "energy", "limit", "known by"],
            rows=[_row(o, found.epochs) for o in found.options],
        ),
        Section(
            title="Where the time goes",
            figure=plots.stacked_bars({o.name: _values(o.predicted.parts) for o in found.options}, unit, scale),
        ),
    ]
    priced = [o for o in found.options if o.cost is not None]
    unpriced = [f"{o.name}: {o.bill.price_source}" for o in found.options if o.cost is None]
    if priced:
        currency = priced[0].bill.currency
        sections.append(
            Section(
                title="Where the money goes",
                words=[*(f"{o.name}: {o.bill.price_source}." for o in priced), *unpriced],
                figure=plots.stacked_bars({o.name: _values(o.bill.parts) for o in priced}, currency),
            )
        )
        places = {o.name: (o.seconds * scale, o.cost or 0.0) for o in priced}
        front = [o.name for o in pareto(found.options)]
        sections.append(Section(title="Time against money", figure=plots.points(places, front, unit, currency)))
    else:
        sections.append(Section(title="Where the money goes", words=unpriced))
    sections.append(_scaling(found, unit, scale))
    sections += _reached(found)
    sections.append(_buying(found))
    energy = [
        [o.name, f"{o.power.kwh.value:.3g} kWh", o.power.words] if o.power else [o.name, "not known", ""]
        for o in found.options
    ]
    sections.append(Section(title="Energy", columns=["place", "energy", "known by"], rows=energy))
    sections.append(Section(title="Assumptions", words=[", ".join(found.assumptions)]))
    return sections


def _row(option: Option, epochs: int) -> list[str]:
    time, cost = option.predicted.total, option.bill.total
    return [
        option.name if option.stays else f"{option.name}, elsewhere",
        rough_duration(time.value),
        f"{rough_duration(time.low)} … {rough_duration(time.high)}",
        f"{option.predicted.images_per_second:.0f}",
        cost_text(cost, option.bill.currency),
        cost_text(cost.times(1 / epochs), option.bill.currency) if cost else "no price",
        f"{option.power.kwh.value:.3g} kWh" if option.power else "not known",
        option.predicted.limit,
        "; ".join((time.basis.value, *option.predicted.notes)),
    ]


def _scaling(found: Comparison, unit: str, scale: float) -> Section:
    curves = {
        o.name: (sorted(o.scaling), [o.scaling[n].total.value * scale for n in sorted(o.scaling)])
        for o in found.options
        if len(o.scaling) > 1
    }
    words = [f"{o.name}: {flattening(o.scaling)}." for o in found.options if len(o.scaling) > 1]
    return Section(
        title="With more workers", words=words, figure=plots.lines(curves, "workers", unit) if curves else None
    )


def _reached(found: Comparison) -> list[Section]:
    """What a reached mAP costs, by the curve of a finished run."""
    if not found.curve:
        return []
    best = max(e.map or 0.0 for e in found.curve)
    rows = []
    for part in REACHED:
        first = next(e for e in found.curve if (e.map or 0.0) >= part * best)
        share = first.epoch / found.epochs
        cells = []
        for o in found.options:
            cost = o.bill.total.times(share) if o.bill.total else None
            cells.append(f"{rough_duration(o.seconds * share)}, {cost_text(cost, o.bill.currency)}")
        rows.append([f"{part * best:.3f}", str(first.epoch), *cells])
    title = "What a reached mAP costs"
    return [Section(title=title, columns=["mAP50-95", "epoch", *(o.name for o in found.options)], rows=rows)]


def _buying(found: Comparison) -> Section:
    if found.buying is None:
        words = (
            "Set --assume purchasePrice=… (and watts=…, where no counter tells) and compare local with rented machines."
        )
        return Section(title="Buy or rent", words=[words])
    curves = {name: (found.buying.trainings, values) for name, values in found.buying.curves.items()}
    currency = found.options[0].bill.currency
    return Section(
        title="Buy or rent",
        words=[found.buying.words],
        figure=plots.lines(curves, "trainings per month", f"{currency} per month"),
    )


def _values(parts: dict[Part, Estimate]) -> dict[Part, float]:
    return {part: figure.value for part, figure in parts.items()}
