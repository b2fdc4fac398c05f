"""A comparison of places: what stands on its page and in its picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolojob.api.job import YoloTrainingJob
from yolojob.cli import tables
from yolojob.estimation.estimate import Figure
from yolojob.estimation.estimator import Survey
from yolojob.estimation.option import BreakEven, Option, break_even, clock, flattening, pareto, recommend
from yolojob.reports import plots, run_files
from yolojob.reports.html import Section, render
from yolojob.reports.html import write as write_page

REACHED = (0.5, 0.8, 0.9, 0.95, 1.0)
"""Parts of the best mAP whose costs are shown."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Places, worked out and judged."""

    name: str
    epochs: int
    options: list[Option]
    recommendation: str
    assumptions: list[str]
    buying: BreakEven | None
    curve: list[run_files.Epoch]
    """Of a finished run of this job, where there is one."""


def of(job: YoloTrainingJob, survey: Survey, options: list[Option], curve: Path | None) -> Comparison:
    """Judge.

    Raises:
        NoRun: there is no such finished run.
    """
    options = sorted(options, key=lambda o: o.seconds)
    said = survey.assumed.model_dump(by_alias=True, exclude_none=True)
    epochs = run_files.epochs(curve) if curve else []
    return Comparison(
        name=job.metadata.name,
        epochs=job.spec.train.epochs,
        options=options,
        recommendation=recommend(options, survey.assumed),
        assumptions=[f"{key} = {value}" for key, value in said.items()],
        buying=break_even(options, survey.assumed),
        curve=[e for e in epochs if e.map is not None],
    )


def to_json(found: Comparison) -> dict[str, Any]:
    """For programs."""
    return {
        "name": found.name,
        "recommendation": found.recommendation,
        "pareto": [o.name for o in pareto(found.options)],
        "options": [
            {**tables.option_json(o), "costPerEpoch": o.cost / found.epochs if o.cost is not None else None}
            for o in found.options
        ],
        "breakEven": found.buying.words if found.buying else None,
        "assumptions": found.assumptions,
    }


def write(found: Comparison, page: Path) -> None:
    """Write the page, and the picture beside it."""
    from yolojob.reports import comparison_png

    foot = "Made by yolojob compare. Times are expectations; the interval of each is where nine of ten should lie."
    write_page(page, render(f"{found.name}: where to train it", [found.recommendation], _sections(found), foot))
    comparison_png.draw(found, page.with_suffix(".png"))


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
            figure=plots.stacked({o.name: _values(o.predicted.parts) for o in found.options}, unit, scale),
        ),
    ]
    priced = [o for o in found.options if o.cost is not None]
    unpriced = [f"{o.name}: {o.bill.price_words}" for o in found.options if o.cost is None]
    if priced:
        currency = priced[0].bill.currency
        sections.append(
            Section(
                title="Where the money goes",
                words=[*(f"{o.name}: {o.bill.price_words}." for o in priced), *unpriced],
                figure=plots.stacked({o.name: _values(o.bill.parts) for o in priced}, currency),
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
        clock(time.value),
        f"{clock(time.low)} … {clock(time.high)}",
        f"{option.predicted.images_per_second:.0f}",
        tables.money(cost, option.bill.currency),
        tables.money(cost.times(1 / epochs), option.bill.currency) if cost else "no price",
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
        cells = [
            f"{clock(o.seconds * share)}, {tables.money(o.bill.total.times(share) if o.bill.total else None, o.bill.currency)}"
            for o in found.options
        ]
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


def _values(parts: dict[str, Figure]) -> dict[str, float]:
    return {part: figure.value for part, figure in parts.items()}


def time_unit(longest: float) -> tuple[str, float]:
    """(name, factor from seconds) of the unit in which such times are read best."""
    return ("s", 1.0) if longest < 300 else ("minutes", 1 / 60) if longest < 18000 else ("hours", 1 / 3600)
