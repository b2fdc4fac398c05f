"""`yolojob compare`: compares targets for a training by time, cost and energy."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from yolojob.api.fingerprint import job_fingerprint
from yolojob.api.job import YoloTrainingJob
from yolojob.catalogue import machines
from yolojob.cli import tables
from yolojob.cli.console import print_line
from yolojob.cli.estimator_setup import (
    Bencher,
    EstimatorInputs,
    estimate_targets,
    load_job,
    local_folders,
    parse_targets,
)
from yolojob.cli.options import (
    DEFAULT_BENCH_SECONDS,
    DEFAULT_CACHE,
    DEFAULT_MEASUREMENTS,
    DEFAULT_VOLUMES,
    AssumeSettings,
    AssumptionsFile,
    BenchSeconds,
    CacheFolder,
    CatalogueFile,
    FigureFormat,
    FigureOutput,
    ManifestFile,
    MeasurementsFolder,
    Namespace,
    TrainingImages,
    VolumesFolder,
    dump,
    exit_on_error,
    text_console,
)
from yolojob.estimation import assumptions
from yolojob.estimation.bench_records import RecordFolder, closest_record
from yolojob.estimation.estimator import CannotEstimate
from yolojob.estimation.target import Target


class Measure(enum.StrEnum):
    """When `compare` runs benches."""

    MISSING = "missing"
    ALWAYS = "always"
    NEVER = "never"


Targets = Annotated[
    list[str],
    typer.Option(
        "--on",
        metavar="TARGET",
        help="local, CONTEXT[:GPU|:MACHINE], gke:MACHINE or eks:MACHINE; append xN for N workers.",
    ),
]
When = Annotated[Measure, typer.Option(help="Run benches on targets without one (missing), on all targets, or never.")]
CurveFolder = Annotated[
    Path | None, typer.Option(help="Folder of a finished run of this job, for the cost of reaching an mAP.")
]
Page = Annotated[Path, typer.Option(help="HTML page to write; a picture is written beside it as .png.")]


def compare(
    file: ManifestFile,
    on: Targets,
    measure: When = Measure.MISSING,
    curve: CurveFolder = None,
    images: TrainingImages = None,
    assume: AssumeSettings = None,
    assumptions_file: AssumptionsFile = None,
    catalogue_file: CatalogueFile = None,
    seconds: BenchSeconds = DEFAULT_BENCH_SECONDS,
    page: Page = Path("compare.html"),
    output: FigureFormat = FigureOutput.TEXT,
    namespace: Namespace = None,
    volumes: VolumesFolder = DEFAULT_VOLUMES,
    cache: CacheFolder = DEFAULT_CACHE,
    folder: MeasurementsFolder = DEFAULT_MEASUREMENTS,
) -> None:
    """Compare targets for a training by time, cost and energy, and recommend one.

    Runs a bench on each target that can be measured (a minute each, once), and predicts machines of the catalogue.
    Prints a table, and writes one self-contained HTML page and a picture.
    """
    console = text_console(output)
    with exit_on_error():
        job = load_job(file)
        inputs = EstimatorInputs(
            places=local_folders(volumes, cache),
            catalogue=machines.load(catalogue_file),
            assumptions=assumptions.load(assumptions_file, assume or []),
            records=RecordFolder(folder),
            images=images,
        )
        targets = parse_targets(on, inputs.catalogue)
        bencher = Bencher(job=job, places=inputs.places, namespace=namespace, seconds=seconds, console=console)
        for target in (t for t in targets if _needs_bench(measure, inputs.records, job, t)):
            inputs.records.write(bencher.run(target))
        estimator = inputs.build(job, console)
        options, refused = estimate_targets(estimator, targets)
        if not options:
            raise CannotEstimate("; ".join(refused.values()))
        from yolojob.reports import comparison, comparison_page  # needs the extra `report`

        result = comparison.build_comparison(job, estimator, options, curve)
        if output.is_text:
            tables.show_options(options, refused, console, wide=output is FigureOutput.WIDE)
            print_line(console, f"\n{result.recommendation}", style="bold")
        else:
            dump(comparison.to_json(result), output)
        comparison_page.write_comparison_page(result, page)
        print_line(console, f"Written to {page} and {page.with_suffix('.png')}")


def _needs_bench(measure: Measure, records: RecordFolder, job: YoloTrainingJob, target: Target) -> bool:
    if not target.is_measurable or measure is not Measure.MISSING:
        return target.is_measurable and measure is Measure.ALWAYS
    workers = target.workers or job.spec.workers.replicas
    closest = closest_record(records.for_job(job_fingerprint(job.spec)), target.place, workers)
    return closest is None or closest.measurement.workers != workers
