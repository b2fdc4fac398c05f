"""`yolojob estimate`: predicts time, memory and cost of a job on each target."""

from __future__ import annotations

from typing import Annotated

import typer

from yolojob.api.constants import ExitCode
from yolojob.api.fingerprint import job_fingerprint
from yolojob.catalogue import machines
from yolojob.cli import tables
from yolojob.cli.estimator_setup import EstimatorInputs, estimate_targets, load_job, local_folders, parse_targets
from yolojob.cli.options import (
    DEFAULT_CACHE,
    DEFAULT_MEASUREMENTS,
    DEFAULT_VOLUMES,
    AssumeSettings,
    AssumptionsFile,
    CacheFolder,
    CatalogueFile,
    FigureFormat,
    FigureOutput,
    ManifestFile,
    MeasurementsFolder,
    TrainingImages,
    VolumesFolder,
    dump,
    exit_on_error,
    text_console,
)
from yolojob.estimation import assumptions
from yolojob.estimation.bench_records import RecordFolder
from yolojob.estimation.option import option_json


def estimate(
    file: ManifestFile,
    on: Annotated[
        list[str] | None,
        typer.Option("--on", metavar="TARGET", help="Machines or places. Default: the whole catalogue."),
    ] = None,
    images: TrainingImages = None,
    assume: AssumeSettings = None,
    assumptions_file: AssumptionsFile = None,
    catalogue_file: CatalogueFile = None,
    output: FigureFormat = FigureOutput.TEXT,
    volumes: VolumesFolder = DEFAULT_VOLUMES,
    cache: CacheFolder = DEFAULT_CACHE,
    folder: MeasurementsFolder = DEFAULT_MEASUREMENTS,
) -> None:
    """Estimate a job's size, and its time and cost on each machine of the catalogue, without training.

    Shows parameters, operations, memory by batch and image size, the dataset and its upload time; time and cost come
    from the roofline model, or from benches in --measurements. Each figure states its basis (measured, scaled from a
    measurement, or predicted) and its range of error; -o wide shows all of them.
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
        measured = [r.target for r in inputs.records.for_job(job_fingerprint(job.spec))]
        targets = parse_targets(on or [*measured, *inputs.catalogue.machines], inputs.catalogue)
        estimator = inputs.build(job, console)
        options, refused = estimate_targets(estimator, targets)
        if output.is_text:
            tables.show_model_profile(estimator, console)
            tables.show_options(options, refused, console, wide=output is FigureOutput.WIDE)
        else:
            dump({**tables.model_profile_json(estimator), "options": [option_json(o) for o in options]}, output)
        if not options and refused:
            raise typer.Exit(ExitCode.BAD_INPUT)
