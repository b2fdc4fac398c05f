"""`yolojob bench`: measures a job, or tries the settings of spec.tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from yolojob.api.constants import Mode
from yolojob.catalogue import machines
from yolojob.cli import bench_runner, live_view, tables
from yolojob.cli.console import print_line
from yolojob.cli.estimator_setup import Bencher, load_job, local_folders, parse_targets
from yolojob.cli.options import (
    DEFAULT_BENCH_SECONDS,
    DEFAULT_CACHE,
    DEFAULT_MEASUREMENTS,
    DEFAULT_VOLUMES,
    BenchSeconds,
    CacheFolder,
    FigureFormat,
    FigureOutput,
    MeasurementsFolder,
    Namespace,
    VolumesFolder,
    dump,
    exit_on_error,
    text_console,
)
from yolojob.estimation.bench_records import RecordFolder
from yolojob.estimation.target import LOCAL, UnknownTarget


def bench(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Manifest. Default: a standard job on a built-in dataset.")
    ] = None,
    on: Annotated[
        list[str] | None,
        typer.Option("--on", metavar="TARGET", help="local, or CONTEXT[:GPU]; append xN for N workers."),
    ] = None,
    tune: Annotated[bool, typer.Option("--tune", help="Try the settings of spec.tuning instead.")] = False,
    seconds: BenchSeconds = DEFAULT_BENCH_SECONDS,
    output: FigureFormat = FigureOutput.TEXT,
    namespace: Namespace = None,
    volumes: VolumesFolder = DEFAULT_VOLUMES,
    cache: CacheFolder = DEFAULT_CACHE,
    folder: MeasurementsFolder = DEFAULT_MEASUREMENTS,
) -> None:
    """Measure a job for less than a minute, here or in clusters, without training it.

    Measures steps, validation, checkpoints, data loading, disks, the all-reduce of gradients, and power: the inputs of
    `estimate` and `compare`. In a cluster, a bench runs as an ordinary short job. Each target's result is written to a
    file in --measurements.

    --tune tries number format, memory layout, micro-batch, image cache, loader processes and compilation on the job's
    own model, dataset and batch, within spec.tuning.maxSeconds, and reports the fastest settings that do not change the
    loss. It never changes a setting of the manifest. spec.tuning.mode: Auto does the same before a training.
    """
    console = text_console(output)
    places = local_folders(volumes, cache)
    with exit_on_error():
        job = load_job(file)
        if tune:
            report = bench_runner.run_here(job, places, Mode.TUNE, 0, console)
            assert report.tuning is not None
            if output.is_text:
                live_view.show_trials(report.tuning, console)
            else:
                dump(report.tuning.model_dump(mode="json", by_alias=True, exclude_none=True), output)
            return
        bencher = Bencher(job=job, places=places, namespace=namespace, seconds=seconds, console=console)
        records = []
        for target in parse_targets(on or [LOCAL], machines.builtin()):
            if not target.is_measurable:
                raise UnknownTarget(
                    f"{target.text}: cannot benchmark a catalogue machine: use `local` or a kubeconfig context"
                )
            record = bencher.run(target)
            records.append(record)
            print_line(console, f"{target.text}: written to {RecordFolder(folder).write(record)}")
        if output.is_text:
            for record in records:
                tables.show_bench(record, console)
        else:
            dump([r.model_dump(mode="json", by_alias=True, exclude_none=True) for r in records], output)
