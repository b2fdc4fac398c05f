"""The HTML page about a finished run."""

from __future__ import annotations

from pathlib import Path

from yolojob.format import duration, rough_duration, time_unit
from yolojob.reports import html, plots
from yolojob.reports.html import Section
from yolojob.reports.run_report import RunReport, cost_words


def write_run_report_page(story: RunReport, page: Path) -> None:
    """The page."""
    lead = [str(each) for each in story.advice[:3]] or ["Nothing stands out that would make it faster by itself."]
    title = f"{story.name}: where {rough_duration(story.total)} went"
    html.save(page, html.render(title, lead, _sections(story), "Made by yolojob report."))


def _sections(story: RunReport) -> list[Section]:
    unit, scale = time_unit(story.total)
    rows = [[part.label, duration(seconds), f"{seconds / story.total:.1%}"] for part, seconds in story.parts.items()]
    sections = [
        Section(
            title="From start to model",
            figure=plots.stacked_bars({story.name: story.parts}, unit, scale),
            columns=["part", "time", "share"],
            rows=rows,
        )
    ]
    if story.phases:
        numbers = [float(n) for n in range(1, len(story.rates) + 1)]
        sections += [
            Section(title="Epoch by epoch", figure=plots.columns(numbers, story.phases, "epoch", "s")),
            Section(
                title="Throughput", figure=plots.lines({"img/s": (numbers, story.rates)}, "epoch", "images per second")
            ),
        ]
    validated = [e for e in story.epochs if e.map is not None]
    if validated:
        times = [e.seconds * scale for e in validated]
        curves = {
            "mAP50-95": (times, [e.map or 0.0 for e in validated]),
            "mAP50": (times, [e.map50 or 0.0 for e in validated]),
        }
        sections.append(Section(title="Accuracy over time", figure=plots.lines(curves, unit, "mAP")))
        if story.cost and story.cost.so_far is not None:
            # What ran before the first epoch costs, too: the last epoch's money is all of it.
            spent = [story.cost.so_far * e.seconds / validated[-1].seconds for e in validated]
            over = {name: (spent, values) for name, (_, values) in curves.items()}
            words = ["The whole cost, spread over the epochs as their time is."]
            figure = plots.lines(over, story.cost.currency or "", "mAP")
            sections.append(Section(title="Accuracy over money", words=words, figure=figure))
    if len(story.stragglers) > 1:
        rows = [[f"rank {rank}", f"{seconds * 1000:.1f} ms"] for rank, seconds in story.stragglers.items()]
        sections.append(Section(title="Stragglers", columns=["", "computing, in a step"], rows=rows))
    sections.append(_money(story))
    rows = [[a.what, a.change, rough_duration(a.saves)] for a in story.advice]
    words = [] if rows else ["Nothing stands out that would make it faster by itself."]
    sections.append(
        Section(title="What to change first", words=words, columns=["what", "change", "saves about"], rows=rows)
    )
    return sections


def _money(story: RunReport) -> Section:
    cost = story.cost
    words = [cost_words(cost)]
    rows = [
        [
            str(a.attempt),
            str(a.workers),
            duration(a.pod_seconds),
            f"{a.per_worker_hour:.4f}" if a.per_worker_hour is not None else "no price",
            f"{a.cost:.6f} {a.currency}" if a.cost is not None else "no price",
            a.reason or "",
        ]
        for a in story.attempts
    ]
    if cost and cost.so_far and story.reached and story.reached[1]:
        words.append(f"{cost.so_far / story.reached[1] / 100:.4g} {cost.currency} for each hundredth of mAP50-95.")
    columns = ["attempt", "workers", "pods ran", "per worker and hour", "cost", "ended"]
    return Section(title="Money", words=words, columns=columns, rows=rows)
