"""Prints measurements, estimates, comparisons and run reports, and converts them to plain data for programs."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.bar import Bar
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from yolojob.api.dataset_check import DatasetCheck
from yolojob.api.time_parts import known_part
from yolojob.cli import live_view
from yolojob.cli.console import print_line, print_table
from yolojob.estimation.bench_records import Record
from yolojob.estimation.estimator import Estimator
from yolojob.estimation.option import Option, cost_text
from yolojob.format import byte_size, duration, metrics_line, rough_duration, short_duration
from yolojob.reports.dataset_findings import Finding, Level, cost_of_samples, overview
from yolojob.reports.run_report import NO_ADVICE, RunReport, cost_description


def show_bench(record: Record, console: Console) -> None:
    """Print the result of a bench."""
    m = record.measurement
    table = Table(box=None)
    table.add_column("part")
    table.add_column("time", justify="right")
    table.add_column("")
    longest = max(sum(s.seconds.values()) for s in m.steps)
    for steps in m.steps:
        step = sum(steps.seconds.values())
        kind = "step with mosaic" if steps.with_mosaic else "step"
        table.add_row(f"{kind}, without optimizer", short_duration(step), f"{steps.count} times")
        for phase, seconds in steps.seconds.items():
            table.add_row(f"  {known_part(phase).label}", short_duration(seconds), Bar(longest, 0, seconds, width=30))
    table.add_row("optimizer step", short_duration(m.update_seconds), "")
    table.add_row("validation", short_duration(m.validation_seconds), "")
    table.add_row("checkpoint", short_duration(m.checkpoint_seconds), "")
    table.add_row("startup", duration(m.startup_seconds), "")
    table.add_row("staging", duration(m.staging_seconds), f"{duration(m.cached_staging_seconds)} when cached")
    for part, seconds in record.waits.items():
        table.add_row(known_part(part).label, duration(seconds), "")
    print_table(console, table, title=f"{record.target}: {m.workers} worker(s), {m.device}, {m.precision}")
    rates, facts = m.rates, []
    if m.link:
        speed = f"{byte_size(m.link.bytes_per_second)}/s, latency {short_duration(m.link.latency_seconds)}"
        facts.append(f"all-reduce between {m.link.between}: {speed}")
    facts += [
        f"{name}: {value:.0f} per second and core"
        for name, value in (("samples", rates.samples_per_core), ("images decoded", rates.decoded_per_core))
        if value
    ]
    facts += [
        f"{name}: {byte_size(value)}/s"
        for name, value in (
            ("disk read", rates.disk_read),
            ("disk write", rates.disk_write),
            ("object store", rates.store_read),
        )
        if value
    ]
    power = f"{m.energy.watts:.0f} W ({m.energy.source})" if m.energy else "not measured (no NVML or RAPL counter)"
    console.print("  ".join([*facts, f"power: {power}"]), highlight=False)


def show_model_profile(estimator: Estimator, console: Console) -> None:
    """Print the size of a job: its model, its memory and its dataset."""
    profile, data, train = estimator.model_profile, estimator.data, estimator.spec.train
    console.print(
        f"{estimator.spec.model.name}: {profile.parameters:,} parameters, "
        f"{profile.gflops:.3g} GFLOPs per image of {train.imgsz} pixels",
        highlight=False,
    )
    table = Table(box=None)
    table.add_column("imgsz", justify="right")
    batches = sorted({1, 4, 16, 64, train.batch})
    for batch in batches:
        table.add_column(str(batch), justify="right")
    for imgsz in sorted({train.imgsz // 2, train.imgsz, train.imgsz * 2}):
        # The activations that the forward pass keeps grow with the area.
        scaled = profile.model_copy(
            update={"activation_bytes": round(profile.activation_bytes * (imgsz / train.imgsz) ** 2)}
        )
        table.add_row(str(imgsz), *(byte_size(scaled.memory(batch)) for batch in batches))
    print_table(console, table, title="Memory for training, by image size and images per process")
    images = (
        f"{data.images:,} + {data.val_images or 0:,} images"
        if data.images is not None
        else "an unknown number of images"
    )
    size = f", {byte_size(data.bytes)}" if data.bytes is not None else ""
    upload = ""
    if data.bytes:
        rate = estimator.assumptions.upload_mbps
        upload = f"; uploading it to a provider at {rate:g} Mbit/s takes {rough_duration(data.bytes * 8 / rate / 1e6)}"
    print_line(console, f"Dataset: {images}{size}{upload}")


def model_profile_json(estimator: Estimator) -> dict[str, Any]:
    return {
        "modelProfile": estimator.model_profile.model_dump(mode="json", by_alias=True),
        "data": estimator.data.model_dump(mode="json", by_alias=True, exclude_none=True),
        "memoryBytes": estimator.model_profile.memory(
            estimator.spec.train.batch // estimator.spec.workers.world_size or 1
        ),
    }


def show_options(options: list[Option], refused: dict[str, str], console: Console, *, wide: bool) -> None:
    """Print the options side by side; below them, the reasons of the targets that cannot be estimated.

    Args:
        options: that were estimated.
        refused: reasons by the names of the other targets.
        console: to print to.
        wide: with the columns for which 80 characters have no room.
    """
    table = Table(box=None, pad_edge=False, header_style="")
    for column in ("TARGET", "TIME", "RANGE", "COST", "LIMIT", *(("IMG/S", "ENERGY", "BASIS") if wide else ())):
        table.add_column(column)
    for option in sorted(options, key=lambda o: o.seconds):
        time = option.predicted.total
        row = [
            option.name,
            rough_duration(time.value),
            f"{rough_duration(time.low)} … {rough_duration(time.high)}",
            cost_text(option.bill.total, option.bill.currency),
            option.predicted.limit,
        ]
        if wide:
            energy = f"{option.power.kwh.value:.3g} kWh" if option.power else "unknown"
            row += [f"{option.predicted.images_per_second:.0f}", energy, time.basis.value]
        table.add_row(*row)
    print_table(console, table)
    if not wide and options:
        counts = Counter(option.predicted.total.basis.value for option in options)
        bases = ", ".join(f"{count} {basis}" for basis, count in counts.most_common())
        print_line(
            console, f"Basis: {bases}. For images per second, energy and the basis of each: -o wide", style="dim"
        )
    for option in options:
        if option.bill.total is None:
            print_line(console, f"{option.name}: {option.bill.price_source}")
    for name, reason in refused.items():
        print_line(console, f"! {reason if reason.startswith(name) else f'{name}: {reason}'}", style="yellow")


def show_run_report(report: RunReport, console: Console) -> None:
    """Print a run report."""
    console.print(f"{report.name}: {rough_duration(report.total)} from start to model", style="bold")
    console.print(live_view.stacked_bar(report.parts))
    for part, seconds in report.parts.items():
        console.print(f"  {part.label:12} {duration(seconds):>9}  {seconds / report.total:6.1%}", highlight=False)
    if report.reached:
        console.print(metrics_line(report.reached), highlight=False)
    print_line(console, f"Cost: {cost_description(report.cost)}")
    for advice in report.advice:
        print_line(console, f"→ {advice}", style="bold")
    if not report.advice:
        console.print(NO_ADVICE)


def show_dataset_check(check: DatasetCheck, found: list[Finding], console: Console) -> None:
    """Print the result of a check."""
    columns, rows = overview(check)
    table = Table(box=None)
    for column in columns:
        table.add_column(column, justify="left" if column == "split" else "right")
    for row in rows:
        table.add_row(*row)
    print_table(console, table, title=f"Dataset for {check.task}")
    if cost := cost_of_samples(check):
        print_line(console, cost)
    for finding in found:
        style = {Level.ERROR: "bold red", Level.WARNING: "yellow"}.get(finding.level)
        print_line(console, escape(f"{finding.level}: {finding.message}"), style=style)
    if not found:
        print_line(console, "Nothing was found.")
