"""`yolojob check`: reads the dataset of a job before anybody pays for a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from yolojob.api.constants import DATASET_CHECK, ExitCode, Mode
from yolojob.api.dataset_check import DatasetCheck
from yolojob.api.job import YoloTrainingJob
from yolojob.api.spec import Tuning
from yolojob.cli import bench_runner, tables
from yolojob.cli.console import print_line
from yolojob.cli.estimator_setup import load_job, local_folders
from yolojob.cli.options import (
    DEFAULT_CACHE,
    DEFAULT_VOLUMES,
    CacheFolder,
    FigureFormat,
    FigureOutput,
    ManifestFile,
    VolumesFolder,
    dump,
    exit_on_error,
    text_console,
)

PREVIEWED = 16
"""Training samples of the preview; Ultralytics draws no more on a sheet."""


def check(
    file: ManifestFile,
    page: Annotated[Path, typer.Option(help="HTML page to write.")] = Path("check.html"),
    output: FigureFormat = FigureOutput.TEXT,
    volumes: VolumesFolder = DEFAULT_VOLUMES,
    cache: CacheFolder = DEFAULT_CACHE,
) -> None:
    """Check the dataset of a job on this machine, before a training.

    Reads every image and every label. Finds broken files, copies, pictures that are in more than one split, images
    without labels, labels without images, rare classes, and objects that are too small for spec.train.imgsz. Measures
    what it costs to make a training sample. The page shows training samples with their labels.

    A check that was interrupted continues where it has ended. The dataset is not changed. The exit code is 2 if a
    training would refuse the dataset.
    """
    console = text_console(output)
    results: list[DatasetCheck] = []

    def collect(folder: Path) -> None:
        results.append(DatasetCheck.model_validate_json((folder / DATASET_CHECK).read_text(encoding="utf-8")))

    with exit_on_error():
        job = load_job(file)
        # Plots need the extra `report`, which the other commands do without.
        from yolojob.reports import dataset_findings, dataset_page

        bench_runner.run_here(_one_process(job), local_folders(volumes, cache), Mode.CHECK, 0, console, collect=collect)
        (result,) = results
        found = dataset_findings.findings(result)
        if output.is_text:
            tables.show_dataset_check(result, found, console)
        else:
            content = result.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"preview"})
            dump({**content, "findings": [{"level": f.level.value, "message": f.message} for f in found]}, output)
        dataset_page.write_dataset_page(job.metadata.name, result, page)
        print_line(console, f"Written to {page}")
    if result.refused:
        raise typer.Exit(ExitCode.BAD_INPUT)


def _one_process(job: YoloTrainingJob) -> YoloTrainingJob:
    """Return the job for one process on the CPU that loads images in itself: so their time is that of one core.

    It uses all images.
    """
    job = job.model_copy(deep=True)
    spec = job.spec
    spec.workers.replicas, spec.workers.gpu, spec.elastic, spec.tuning = 1, None, None, Tuning()
    spec.workers.processes_per_worker = 1
    spec.train.batch, spec.train.workers, spec.train.cache, spec.train.amp = PREVIEWED, 0, False, False
    spec.train.fraction = None
    return job
