"""The verbs about time and money: measure a minute, know the hours and what they cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from yolojob.api import manifest
from yolojob.api.constants import ExitCode, Mode
from yolojob.api.fingerprint import job_fingerprint
from yolojob.api.job import YoloTrainingJob
from yolojob.catalogue import machines
from yolojob.catalogue.prices import NoPrice
from yolojob.cli import bench_runner, live_view, tables
from yolojob.cli.options import Context, FigureFormat, FigureOutput, Namespace, dump, exit_on_error
from yolojob.client import kubeconfig
from yolojob.client.local_run import Places
from yolojob.estimation import assumptions, target
from yolojob.estimation.bench_records import Record, Records, best
from yolojob.estimation.estimator import CannotEstimate, Estimator
from yolojob.estimation.option import Option, option_json
from yolojob.estimation.roofline import DoesNotFit
from yolojob.estimation.target import LOCAL, Target
from yolojob.reports import comparison_page, run_report_page

app = typer.Typer()

Job = Annotated[Path, typer.Argument(metavar="FILE", help="Manifest with one YoloTrainingJob.")]
Volumes = Annotated[Path, typer.Option(help="Where pvc://CLAIM/PATH is found as CLAIM/PATH.")]
Cache = Annotated[Path, typer.Option(envvar="YOLOJOB_CACHE_DIR", help="Where staged data sets are kept.")]
Folder = Annotated[Path, typer.Option("--measurements", help="Folder of the files that benches leave.")]
Seconds = Annotated[int, typer.Option(min=5, max=600, help="Time for the measurements of a bench, after its start.")]
Own = Annotated[
    Path | None, typer.Option("--catalogue", help="File with machines and accelerators of your own; see docs/costs.md.")
]
Assumed = Annotated[
    list[str] | None,
    typer.Option("--assume", metavar="KEY=VALUE", help="An assumption, such as electricityPrice=0.3; may be repeated."),
]
AssumedFile = Annotated[Path | None, typer.Option("--assumptions", help="File with assumptions, by their names.")]
Images = Annotated[
    int | None, typer.Option(min=1, help="Training images, where the data set is an archive that lies elsewhere.")
]
STANDARD = Path(__file__).parent / "standard.yaml"
DEFAULT_CACHE, DEFAULT_FOLDER, DEFAULT_SECONDS = Path("~/.cache/yolojob"), Path("measurements"), 45


@app.command()
def bench(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Manifest; a standard job unless given.")
    ] = None,
    on: Annotated[
        list[str] | None,
        typer.Option("--on", metavar="TARGET", help="local, or CONTEXT[:GPU], each also with xN for N workers."),
    ] = None,
    tune: Annotated[bool, typer.Option("--tune", help="Try the settings of spec.tuning instead.")] = False,
    seconds: Seconds = DEFAULT_SECONDS,
    output: FigureFormat = FigureOutput.TEXT,
    namespace: Namespace = None,
    volumes: Volumes = Path("volumes"),
    cache: Cache = DEFAULT_CACHE,
    folder: Folder = DEFAULT_FOLDER,
) -> None:
    """Measure a job for less than a minute, here or in clusters, and train nothing.

    Steps, validation, checkpoint, data loading, disks, the reduction of gradients, power: all that `estimate` and `compare`
    predict from. In a cluster it runs as an ordinary short job. Each target leaves a file in --measurements.

    --tune tries number format, memory layout, micro-batch, image cache, loader processes and compilation on the job's own
    network, data and batch, within spec.tuning.maxSeconds, and says what is fastest without changing the loss. What the
    manifest sets is left alone. spec.tuning.mode: Auto does the same before a training.
    """
    console = Console(stderr=output is not FigureOutput.TEXT)
    places = Places(runs=Path(), volumes=volumes, cache=cache.expanduser())
    with exit_on_error():
        job = _job(file)
        if tune:
            report = bench_runner.run_here(job, places, Mode.TUNE, 0, console)
            assert report.tuning is not None
            if output is FigureOutput.TEXT:
                live_view.show_trials(report.tuning, console)
            else:
                dump(report.tuning.model_dump(mode="json", by_alias=True, exclude_none=True), output)
            return
        targets = _targets(on or [LOCAL], machines.builtin())
        records = []
        for each in targets:
            if not each.is_measurable:
                raise target.UnknownTarget(
                    f"{each.text}: a bench needs the machine itself: local, or a kubeconfig's context"
                )
            record = _measure(job, each, places, namespace, seconds, console)
            path = Records(folder).write(record)
            records.append(record)
            console.print(f"{each.text}: written to {path}", highlight=False, soft_wrap=True)
        if output is FigureOutput.TEXT:
            for record in records:
                tables.show_bench(record, console)
        else:
            dump([r.model_dump(mode="json", by_alias=True, exclude_none=True) for r in records], output)


@app.command()
def estimate(
    file: Job,
    on: Annotated[
        list[str] | None,
        typer.Option("--on", metavar="TARGET", help="Machines or places; all of the catalogue unless given."),
    ] = None,
    images: Images = None,
    assume: Assumed = None,
    assumed_file: AssumedFile = None,
    own: Own = None,
    output: FigureFormat = FigureOutput.TEXT,
    volumes: Volumes = Path("volumes"),
    cache: Cache = DEFAULT_CACHE,
    folder: Folder = DEFAULT_FOLDER,
) -> None:
    """Tell what a job is made of, and what it takes on each machine of the catalogue, without training.

    Parameters, operations, memory by batch and image size, the data set and its way to a provider; time and cost by the
    roofline model, or from benches in --measurements. Each figure says whether it is measured, scaled from a measurement, or
    predicted, and how far it may be off.
    """
    console = Console(stderr=output is not FigureOutput.TEXT)
    places = Places(runs=Path(), volumes=volumes, cache=cache.expanduser())
    with exit_on_error():
        job = _job(file)
        known = machines.load(own)
        assumed = assumptions.load(assumed_file, assume or [])
        measured = [r.target for r in Records(folder).for_job(job_fingerprint(job.spec))]
        targets = _targets(on or [*measured, *known.machines], known)
        survey = _survey(job, places, known, assumed, folder, images, console)
        options, refused = _options(survey, targets)
        if output is FigureOutput.TEXT:
            tables.show_model_profile(survey, console)
            tables.show_options(options, refused, console)
        else:
            dump({**tables.model_profile_json(survey), "options": [option_json(o) for o in options]}, output)
        if not options and refused:
            raise typer.Exit(ExitCode.BAD_INPUT)


@app.command()
def compare(
    file: Job,
    on: Annotated[
        list[str],
        typer.Option(
            "--on", metavar="TARGET", help="local, CONTEXT[:GPU|:MACHINE], gke:MACHINE, eks:MACHINE; xN: N workers."
        ),
    ],
    measure: Annotated[
        tables.Measure, typer.Option(help="Run a bench where the place was not measured yet, always, or never.")
    ] = tables.Measure.MISSING,
    curve: Annotated[
        Path | None, typer.Option(help="Folder of a finished run of this job, for the cost of a reached mAP.")
    ] = None,
    images: Images = None,
    assume: Assumed = None,
    assumed_file: AssumedFile = None,
    own: Own = None,
    seconds: Seconds = DEFAULT_SECONDS,
    page: Annotated[Path, typer.Option(help="HTML page to write; a picture goes beside it as .png.")] = Path(
        "compare.html"
    ),
    output: FigureFormat = FigureOutput.TEXT,
    namespace: Namespace = None,
    volumes: Volumes = Path("volumes"),
    cache: Cache = DEFAULT_CACHE,
    folder: Folder = DEFAULT_FOLDER,
) -> None:
    """Compare places for a training: time, money, energy, and which to take.

    Places that can be measured are (a minute each, once); machines of the catalogue are predicted. Writes a table, one
    self-contained HTML page, and a picture.
    """
    console = Console(stderr=output is not FigureOutput.TEXT)
    places = Places(runs=Path(), volumes=volumes, cache=cache.expanduser())
    with exit_on_error():
        job = _job(file)
        known = machines.load(own)
        assumed = assumptions.load(assumed_file, assume or [])
        targets = _targets(on, known)
        records = Records(folder)
        for each in targets:
            if each.is_measurable and _wanted(measure, records, job, each):
                records.write(_measure(job, each, places, namespace, seconds, console))
        survey = _survey(job, places, known, assumed, folder, images, console)
        options, refused = _options(survey, targets)
        if not options:
            raise CannotEstimate("; ".join(refused.values()))
        from yolojob.reports import comparison

        found = comparison.build_comparison(job, survey, options, curve)
        if output is FigureOutput.TEXT:
            tables.show_options(options, refused, console)
            console.print(f"\n{found.recommendation}", style="bold", highlight=False, soft_wrap=True)
        else:
            dump(comparison.to_json(found), output)
        comparison_page.write_comparison_page(found, page)
        console.print(f"Written to {page} and {page.with_suffix('.png')}", highlight=False, soft_wrap=True)


@app.command()
def report(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Folder of a run (runs/NAME), or a job's name in the cluster.")
    ],
    page: Annotated[Path, typer.Option(help="HTML page to write.")] = Path("report.html"),
    job: Annotated[
        str | None,
        typer.Option("--job", metavar="NAME", help="The job in the cluster that made the run in this folder."),
    ] = None,
    output: FigureFormat = FigureOutput.TEXT,
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """Tell where a run's time and money went, and what to change first.

    A run's folder has all of it, step by step; of a job in the cluster there is what its status says. With --job a folder
    gets the job's waits and money.
    """
    console = Console(stderr=output is not FigureOutput.TEXT)
    with exit_on_error():
        from yolojob.reports import run_report

        if Path(run).is_dir():
            story = run_report.from_folder(Path(run))
            if job is not None:
                story = run_report.merge(story, run_report.from_cluster(job, context, namespace))
        else:
            story = run_report.from_cluster(run, context, namespace)
        if output is FigureOutput.TEXT:
            tables.show_run_report(story, console)
        else:
            dump(run_report.to_json(story), output)
        run_report_page.write_run_report_page(story, page)
        console.print(f"Written to {page}", highlight=False, soft_wrap=True)


# --- what they share --------------------------------------------------------------------------------------------------


def _job(file: Path | None) -> YoloTrainingJob:
    """
    Raises:
        InvalidManifest: the file is no job.
    """
    return manifest.parse(manifest.load(file or STANDARD))


def _targets(texts: list[str], known: machines.Catalogue) -> list[Target]:
    contexts = kubeconfig.contexts()
    return [target.parse(text, contexts, known) for text in dict.fromkeys(texts)]


def _measure(
    job: YoloTrainingJob, each: Target, places: Places, namespace: str | None, seconds: int, console: Console
) -> Record:
    if each.is_local:
        return bench_runner.bench_here(job, places, each, seconds, console)

    def say(line: str) -> None:
        console.print(f"{each.text}: {line}", highlight=False, soft_wrap=True)

    return bench_runner.bench_in_cluster(job, each, namespace, seconds, say)


def _wanted(measure: tables.Measure, records: Records, job: YoloTrainingJob, each: Target) -> bool:
    if measure is not tables.Measure.MISSING:
        return measure is tables.Measure.ALWAYS
    workers = each.workers or job.spec.workers.replicas
    known = best(records.for_job(job_fingerprint(job.spec)), each.place, workers)
    return known is None or known.measurement.workers != workers


def _survey(
    job: YoloTrainingJob,
    places: Places,
    known: machines.Catalogue,
    assumed: assumptions.Assumptions,
    folder: Path,
    images: int | None,
    console: Console,
) -> Estimator:
    records = Records(folder).for_job(job_fingerprint(job.spec))
    if records:
        model_profile, data = records[-1].measurement.model_profile, records[-1].measurement.data
    else:
        inspected = job.model_copy(deep=True)
        inspected.spec.workers.replicas, inspected.spec.workers.gpu = 1, None
        inspected.spec.elastic = None
        found = bench_runner.run_here(inspected, places, Mode.INSPECT, 0, console)
        assert found.model_profile is not None
        assert found.data is not None
        model_profile, data = found.model_profile, found.data
    if images is not None:
        data = data.model_copy(update={"images": images, "val_images": data.val_images or images // 10})
    return Estimator(
        spec=job.spec, model_profile=model_profile, data=data, known=known, assumed=assumed, records=records
    )


def _options(survey: Estimator, targets: list[Target]) -> tuple[list[Option], dict[str, str]]:
    """(those that can be worked out, why others cannot)."""
    options, refused = [], {}
    for each in targets:
        try:
            options.append(survey.option(each))
        except (CannotEstimate, DoesNotFit, NoPrice) as error:
            refused[each.text] = str(error)
    return options, refused
