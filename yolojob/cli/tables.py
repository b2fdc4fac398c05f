"""Measurements, estimates and comparisons on the terminal, and as plain data for programs."""

from __future__ import annotations

import enum
import json
from typing import Any

import typer
import yaml
from rich.bar import Bar
from rich.console import Console
from rich.table import Table

from yolojob.api.measurement import Record
from yolojob.cli.jobs import Output
from yolojob.cli.live_view import duration, size
from yolojob.estimation.estimate import Figure
from yolojob.estimation.estimator import Survey
from yolojob.estimation.option import Option, amount, clock


class Measure(enum.StrEnum):
    """Whether `compare` runs benches."""

    MISSING = "missing"
    ALWAYS = "always"
    NEVER = "never"


def dump(content: Any, output: Output) -> None:
    """For programs."""
    text = json.dumps(content, indent=2) if output is Output.JSON else yaml.safe_dump(content, sort_keys=False)
    typer.echo(text.rstrip())


def measured(record: Record, console: Console) -> None:
    """What a bench has found."""
    m = record.measurement
    table = Table(
        title=f"{record.target}: {m.workers} worker(s), {m.device}, {m.precision}", title_justify="left", box=None
    )
    table.add_column("part")
    table.add_column("time", justify="right")
    table.add_column("")
    longest = max(sum(s.seconds.values()) for s in m.steps)
    for steps in m.steps:
        step = sum(steps.seconds.values())
        kind = "a step with mosaic" if steps.mosaic else "a step"
        table.add_row(f"{kind}, without optimizer", duration_ms(step), f"{steps.count} times")
        for phase, seconds in steps.seconds.items():
            table.add_row(f"  {phase}", duration_ms(seconds), Bar(longest, 0, seconds, width=30))
    table.add_row("an optimizer step", duration_ms(m.update_seconds), "")
    table.add_row("a validation", duration_ms(m.validation_seconds), "")
    table.add_row("a checkpoint", duration_ms(m.checkpoint_seconds), "")
    table.add_row("the start", duration(m.startup_seconds), "")
    table.add_row("staging", duration(m.staging_seconds), f"{duration(m.cached_staging_seconds)} once it is there")
    for part, seconds in record.waits.items():
        table.add_row(part, duration(seconds), "")
    console.print(table)
    rates, facts = m.rates, []
    if m.link:
        pace = f"{size(m.link.bytes_per_second)}/s, {duration_ms(m.link.latency_seconds)} at least"
        facts.append(f"gradients between {m.link.between}: {pace}")
    facts += [
        f"{name}: {value:.0f} per second and core"
        for name, value in (("samples", rates.samples_per_core), ("images decoded", rates.decoded_per_core))
        if value
    ]
    facts += [
        f"{name}: {size(value)}/s"
        for name, value in (("disk read", rates.disk_read), ("written", rates.disk_write), ("store", rates.store_read))
        if value
    ]
    facts.append(f"power: {m.energy.watts:.0f} W ({m.energy.source})" if m.energy else "power: no counter tells")
    console.print("  ".join(facts), highlight=False)


def duration_ms(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else duration(seconds)


def anatomy(survey: Survey, console: Console) -> None:
    """What a job is made of."""
    parts, data, train = survey.anatomy, survey.data, survey.spec.train
    console.print(
        f"{survey.spec.model.name}: {parts.parameters:,} parameters, {parts.gflops:.3g} GFLOPs per image of {train.imgsz} pixels",
        highlight=False,
    )
    table = Table(title="Memory for training, by image size and images per process", title_justify="left", box=None)
    table.add_column("imgsz", justify="right")
    batches = sorted({1, 4, 16, 64, train.batch})
    for batch in batches:
        table.add_column(str(batch), justify="right")
    for imgsz in sorted({train.imgsz // 2, train.imgsz, train.imgsz * 2}):
        # What the forward pass keeps grows with the area.
        scaled = parts.model_copy(
            update={"activation_bytes": round(parts.activation_bytes * (imgsz / train.imgsz) ** 2)}
        )
        table.add_row(str(imgsz), *(size(scaled.memory(batch)) for batch in batches))
    console.print(table)
    images = (
        f"{data.images:,} + {data.val_images or 0:,} images"
        if data.images is not None
        else "an unknown number of images"
    )
    where = f", {size(data.bytes)}" if data.bytes is not None else ""
    upload = ""
    if data.bytes:
        rate = survey.assumed.upload_mbps
        upload = f"; at {rate:g} Mbit/s it takes {clock(data.bytes * 8 / rate / 1e6)} to a provider"
    console.print(f"Data set: {images}{where}{upload}", highlight=False, soft_wrap=True)


def anatomy_json(survey: Survey) -> dict[str, Any]:
    return {
        "anatomy": survey.anatomy.model_dump(mode="json", by_alias=True),
        "data": survey.data.model_dump(mode="json", by_alias=True, exclude_none=True),
        "memoryBytes": survey.anatomy.memory(survey.spec.train.batch // survey.spec.workers.world_size or 1),
    }


def options(found: list[Option], refused: dict[str, str], console: Console) -> None:
    """Places side by side; below, the reasons of those that cannot be worked out."""
    table = Table(box=None, pad_edge=False, header_style="")
    for column in ("TARGET", "TIME", "RANGE", "IMG/S", "COST", "ENERGY", "LIMIT", "BASIS"):
        table.add_column(column, overflow="fold", no_wrap=column in ("TARGET", "TIME", "COST"))
    for option in sorted(found, key=lambda o: o.seconds):
        time = option.predicted.total
        table.add_row(
            option.name,
            clock(time.value),
            f"{clock(time.low)} … {clock(time.high)}",
            f"{option.predicted.images_per_second:.0f}",
            money(option.bill.total, option.bill.currency),
            f"{option.power.kwh.value:.3g} kWh" if option.power else "not known",
            option.predicted.limit,
            time.basis.value,
        )
    console.print(table)
    for option in found:
        if option.bill.total is None:
            console.print(f"{option.name}: {option.bill.price_words}", highlight=False, soft_wrap=True)
    for name, words in refused.items():
        console.print(
            f"! {words if words.startswith(name) else f'{name}: {words}'}",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )


def money(figure: Figure | None, currency: str) -> str:
    """An amount; where there is no price, that."""
    return "no price" if figure is None else amount(figure.value, currency)


def option_json(option: Option) -> dict[str, Any]:
    """An option as plain data."""

    def plain(figure: Figure | None) -> dict[str, Any] | None:
        return figure.model_dump(mode="json") if figure else None

    return {
        "target": option.target.text,
        "name": option.name,
        "workers": option.predicted.workers,
        "seconds": plain(option.predicted.total),
        "parts": {part: plain(figure) for part, figure in option.predicted.parts.items()},
        "imagesPerSecond": round(option.predicted.images_per_second, 2),
        "limit": option.predicted.limit,
        "cost": plain(option.bill.total),
        "costParts": {part: plain(figure) for part, figure in option.bill.parts.items()},
        "currency": option.bill.currency,
        "price": option.bill.price_words,
        "kwh": plain(option.power.kwh) if option.power else None,
        "energy": option.power.words if option.power else None,
        "staysHere": option.stays,
        "scaling": {str(n): round(p.total.value, 2) for n, p in option.scaling.items()},
    }
