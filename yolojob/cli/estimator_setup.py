"""Builds what `bench`, `estimate` and `compare` share: the job, the targets, the benches and the estimator."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from yolojob.api import manifest
from yolojob.api.constants import Mode
from yolojob.api.fingerprint import job_fingerprint
from yolojob.api.job import YoloTrainingJob
from yolojob.catalogue.machines import Catalogue
from yolojob.catalogue.prices import NoPrice
from yolojob.cli import bench_runner
from yolojob.cli.console import print_line
from yolojob.client import kubeconfig
from yolojob.client.local_run import Places
from yolojob.estimation import target as targets
from yolojob.estimation.assumptions import Assumptions
from yolojob.estimation.bench_records import Record, RecordFolder
from yolojob.estimation.estimator import CannotEstimate, Estimator
from yolojob.estimation.option import Option
from yolojob.estimation.roofline import DoesNotFit
from yolojob.estimation.target import Target

STANDARD_JOB = Path(__file__).parent / "standard.yaml"
"""The manifest that `yolojob bench` measures without a FILE."""


def load_job(file: Path | None) -> YoloTrainingJob:
    """The manifest's job; the standard job without a file.

    Raises:
        InvalidManifest: the file does not contain exactly one valid job.
    """
    return manifest.parse(manifest.load(file or STANDARD_JOB))


def local_folders(volumes: Path, cache: Path) -> Places:
    """Folders of a local run that keeps no results."""
    return Places(runs=Path(), volumes=volumes, cache=cache.expanduser())


def parse_targets(texts: list[str], catalogue: Catalogue) -> list[Target]:
    """The targets, each once, in the order given.

    Raises:
        UnknownTarget: a text names neither `local`, nor a context, nor a machine of the catalogue.
    """
    contexts = kubeconfig.contexts()
    return [targets.parse(text, contexts, catalogue) for text in dict.fromkeys(texts)]


@dataclass(frozen=True, kw_only=True)
class Bencher:
    """Runs benches of a job, locally or in clusters."""

    job: YoloTrainingJob
    places: Places
    namespace: str | None
    seconds: int
    console: Console

    def run(self, target: Target) -> Record:
        """Run a bench on the target.

        Raises:
            UserError: it could not be measured.
        """
        if target.is_local:
            return bench_runner.bench_here(self.job, self.places, target, self.seconds, self.console)
        return bench_runner.bench_in_cluster(
            self.job,
            target,
            self.namespace,
            self.seconds,
            lambda line: print_line(self.console, f"{target.text}: {line}"),
        )


@dataclass(frozen=True, kw_only=True)
class EstimatorInputs:
    """What an estimator is built from, besides the job."""

    places: Places
    catalogue: Catalogue
    assumptions: Assumptions
    records: RecordFolder
    images: int | None
    """Training images, given by the user for a dataset that cannot be counted."""

    def build(self, job: YoloTrainingJob, console: Console) -> Estimator:
        """The estimator of a job. Without a bench of this job, it inspects the job on this machine first.

        Raises:
            InvalidManifest: this machine cannot inspect the job.
            InvalidRecord: a bench's file is damaged.
            BenchFailed: the inspection failed.
        """
        records = self.records.for_job(job_fingerprint(job.spec))
        if records:
            model_profile, data = records[-1].measurement.model_profile, records[-1].measurement.data
        else:
            inspected = job.model_copy(deep=True)
            inspected.spec.workers.replicas, inspected.spec.workers.gpu = 1, None
            inspected.spec.elastic = None
            report = bench_runner.run_here(inspected, self.places, Mode.INSPECT, 0, console)
            assert report.model_profile is not None
            assert report.data is not None
            model_profile, data = report.model_profile, report.data
        if self.images is not None:
            data = data.model_copy(update={"images": self.images, "val_images": data.val_images or self.images // 10})
        return Estimator(
            spec=job.spec,
            model_profile=model_profile,
            data=data,
            catalogue=self.catalogue,
            assumptions=self.assumptions,
            records=records,
        )


def estimate_targets(estimator: Estimator, targets: list[Target]) -> tuple[list[Option], dict[str, str]]:
    """(options of the targets that can be estimated, reasons by target of those that cannot)."""
    options, refused = [], {}
    for target in targets:
        try:
            options.append(estimator.option(target))
        except (CannotEstimate, DoesNotFit, NoPrice) as error:
            refused[target.text] = str(error)
    return options, refused
