"""Measurements, estimates and comparisons on the terminal, and as plain data for programs."""

from __future__ import annotations

import enum
from typing import Any

from rich.bar import Bar
from rich.console import Console
from rich.table import Table

from yolojob.api.time_parts import known_part
from yolojob.cli import live_view
from yolojob.estimation.bench_records import Record
from yolojob.estimation.estimator import Estimator
from yolojob.estimation.option import Option, cost_text
from yolojob.format import byte_size, duration, rough_duration, short_duration
from yolojob.reports.run_report import RunReport, cost_words


class Measure(enum.StrEnum):
    """Whether `compare` runs benches."""

    MISSING = "missing"
    ALWAYS = "always"
    NEVER = "never"


def show_bench(record: Record, console: Console) -> None:
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
        kind = "a step with mosaic" if steps.with_mosaic else "a step"
        table.add_row(f"{kind}, without optimizer", short_duration(step), f"{steps.count} times")
        for phase, seconds in steps.seconds.items():
            table.add_row(f"  {known_part(phase).label}", short_duration(seconds), Bar(longest, 0, seconds, width=30))
    table.add_row("an optimizer step", short_duration(m.update_seconds), "")
    table.add_row("a validation", short_duration(m.validation_seconds), "")
    table.add_row("a checkpoint", short_duration(m.checkpoint_seconds), "")
    table.add_row("the start", duration(m.startup_seconds), "")
    table.add_row("staging", duration(m.staging_seconds), f"{duration(m.cached_staging_seconds)} once it is there")
    for part, seconds in record.waits.items():
        table.add_row(known_part(part).label, duration(seconds), "")
    console.print(table)
    rates, facts = m.rates, []
    if m.link:
        pace = f"{byte_size(m.link.bytes_per_second)}/s, {short_duration(m.link.latency_seconds)} at least"
        facts.append(f"gradients between {m.link.between}: {pace}")
    facts += [
        f"{name}: {value:.0f} per second and core"
        for name, value in (("samples", rates.samples_per_core), ("images decoded", rates.decoded_per_core))
        if value
    ]
    facts += [
        f"{name}: {byte_size(value)}/s"
        for name, value in (("disk read", rates.disk_read), ("written", rates.disk_write), ("store", rates.store_read))
        if value
    ]
    facts.append(f"power: {m.energy.watts:.0f} W ({m.energy.source})" if m.energy else "power: no counter tells")
    console.print("  ".join(facts), highlight=False)


def show_model_profile(survey: Estimator, console: Console) -> None:
    """What a job is made of."""
    parts, data, train = survey.model_profile, survey.data, survey.spec.train
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
        table.add_row(str(imgsz), *(byte_size(scaled.memory(batch)) for batch in batches))
    console.print(table)
    images = (
        f"{data.images:,} + {data.val_images or 0:,} images"
        if data.images is not None
        else "an unknown number of images"
    )
    where = f", {byte_size(data.bytes)}" if data.bytes is not None else ""
    upload = ""
    if data.bytes:
        rate = survey.assumed.upload_mbps
        upload = f"; at {rate:g} Mbit/s it takes {rough_duration(data.bytes * 8 / rate / 1e6)} to a provider"
    console.print(f"Data set: {images}{where}{upload}", highlight=False, soft_wrap=True)


def model_profile_json(survey: Estimator) -> dict[str, Any]:
    return {
        "model_profile": survey.model_profile.model_dump(mode="json", by_alias=True),
        "data": survey.data.model_dump(mode="json", by_alias=True, exclude_none=True),
        "memoryBytes": survey.model_profile.memory(survey.spec.train.batch // survey.spec.workers.world_size or 1),
    }


def show_options(found: list[Option], refused: dict[str, str], console: Console) -> None:
    """Places side by side; below, the reasons of those that cannot be worked out."""
    table = Table(box=None, pad_edge=False, header_style="")
    for column in ("TARGET", "TIME", "RANGE", "IMG/S", "COST", "ENERGY", "LIMIT", "BASIS"):
        table.add_column(column, overflow="fold", no_wrap=column in ("TARGET", "TIME", "COST"))
    for option in sorted(found, key=lambda o: o.seconds):
        time = option.predicted.total
        table.add_row(
            option.name,
            rough_duration(time.value),
            f"{rough_duration(time.low)} … {rough_duration(time.high)}",
            f"{option.predicted.images_per_second:.0f}",
            cost_text(option.bill.total, option.bill.currency),
            f"{option.power.kwh.value:.3g} kWh" if option.power else "not known",
            option.predicted.limit,
            time.basis.value,
        )
    console.print(table)
    for option in found:
        if option.bill.total is None:
            console.print(f"{option.name}: {option.bill.price_source}", highlight=False, soft_wrap=True)
    for name, words in refused.items():
        console.print(
            f"! {words if words.startswith(name) else f'{name}: {words}'}",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )


def show_run_report(story: RunReport, console: Console) -> None:
    """On the terminal."""
    console.print(f"{story.name}: {rough_duration(story.total)} from start to model", style="bold")
    console.print(live_view.stacked_bar(story.parts))
    for part, seconds in story.parts.items():
        console.print(f"  {part.label:12} {duration(seconds):>9}  {seconds / story.total:6.1%}", highlight=False)
    if story.reached:
        console.print(f"mAP50 {story.reached[0]:.3f}, mAP50-95 {story.reached[1]:.3f}", highlight=False)
    console.print(f"Cost: {cost_words(story.cost)}", highlight=False, soft_wrap=True)
    for each in story.advice:
        console.print(f"→ {each}", style="bold", highlight=False, soft_wrap=True)
    if not story.advice:
        console.print("Nothing stands out that would make it faster by itself.")
