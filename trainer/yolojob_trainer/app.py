"""Runs one training process: reads the run, executes the mode, and leaves a report with an exit code.

The modules that import torch take a second and more to load. They are imported inside the functions, only after the run
is read, so that an invalid run fails quickly.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from yolojob.api import constants
from yolojob.api.constants import ExitCode, Mode
from yolojob.api.reasons import Reason
from yolojob.api.run import Run
from yolojob.api.status import Result
from yolojob.api.trainer_report import Failure, Report, TrainerState
from yolojob_trainer import environment
from yolojob_trainer.errors import BadInput, PeerLost, TrainerError, is_lost_peer
from yolojob_trainer.observability.termination_message import write_termination_message
from yolojob_trainer.system.process import process_start

if TYPE_CHECKING:
    from yolojob.api.spec import ModelRef
    from yolojob_trainer.checkpoint.run_folder import RunFolder
    from yolojob_trainer.data.dataset_description import DatasetDescription
    from yolojob_trainer.distributed.world import World
    from yolojob_trainer.model.resolve import NetworkSource
    from yolojob_trainer.observability.progress_report import Reporter
    from yolojob_trainer.training.callbacks import Callback
    from yolojob_trainer.training.time_account import StartupTimes
    from yolojob_trainer.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What the modes that need data have in common."""

    run: Run
    world: World
    """Connected."""
    reporter: Reporter
    scratch: Path
    """Folder for temporary files."""
    cache: Path
    volumes: Path
    rendezvous_seconds: float


@dataclass(frozen=True, kw_only=True)
class StagedInputs:
    """Data and network of a run on this node."""

    folder: Path
    """The dataset."""
    boundary: Path | None
    """Folder that links in the dataset must not leave."""
    description: DatasetDescription
    config: Path
    """The data file for Ultralytics."""
    network: NetworkSource
    seconds: float
    """Duration of staging."""


class App:
    """One training process."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._reporter: Reporter | None = None

    def run(self) -> int:
        """Execute the mode of this process; return the exit code."""
        try:
            report = self._execute()
        except Exception as error:  # noqa: BLE001 - every error is reported and mapped to an exit code
            report = self._report_failure(error)
        if report.failure or self._rank == 0:
            write_termination_message(report, _termination_log())
        return report.failure.exit_code if report.failure else ExitCode.SUCCEEDED

    def _execute(self) -> Report:
        run = _read_run()
        from yolojob_trainer.distributed.world import World
        from yolojob_trainer.observability import metrics as prometheus
        from yolojob_trainer.observability.progress_report import Reporter

        metrics = prometheus.TrainerMetrics(namespace=run.namespace, job_name=run.name, rank=self._rank)
        world = World.from_env(run.spec.workers.gpu, self._exit_after_lost_peer)
        reporter = self._reporter = Reporter(metrics, world_size=world.world_size)
        if port := int(os.environ.get(constants.ENV_METRICS_PORT, constants.METRICS_PORT)):
            prometheus.serve(metrics, reporter.snapshot, port + world.local_rank)
        began = time.perf_counter()
        with world.connected(), tempfile.TemporaryDirectory(prefix="yolojob-") as scratch:
            result = _run_mode(
                RunContext(
                    run=run,
                    world=world,
                    reporter=reporter,
                    scratch=Path(scratch),
                    cache=environment.cache_dir(),
                    volumes=environment.volumes_dir(),
                    rendezvous_seconds=time.perf_counter() - began,
                )
            )
        if result:
            reporter.succeed(result)
        return reporter.report

    def _last_report(self) -> Report:
        """Return the report up to now."""
        return self._reporter.report if self._reporter else Report()

    def _report_failure(self, error: Exception) -> Report:
        """Print an error; return the report with it."""
        reporter = self._reporter
        fits = reporter is not None and (reporter.saved or reporter.report.resumed_from is not None)
        failure = _failure(error, self._rank, fits=fits)
        report = self._last_report()
        interrupted = failure.exit_code == ExitCode.INTERRUPTED
        report.state = TrainerState.INTERRUPTED if interrupted else TrainerState.FAILED
        report.failure = failure
        if failure.exit_code == ExitCode.FAILED and not isinstance(error, TrainerError):
            traceback.print_exc()
        _print_failure(failure)
        return report

    def _exit_after_lost_peer(self, description: str) -> None:
        """End this process with a report; the main thread may wait for the lost peer without an end."""
        report = self._last_report()
        report.state = TrainerState.FAILED
        message = f"another worker was lost: {description}"
        report.failure = Failure(
            rank=self._rank, reason=Reason.PEER_LOST, message=message, exit_code=ExitCode.PEER_LOST
        )
        _print_failure(report.failure)
        write_termination_message(report, _termination_log())
        os._exit(ExitCode.PEER_LOST)


def main() -> int:
    """Run this process; return the exit code."""
    return App(rank=int(os.environ.get("RANK", "0"))).run()


def _failure(error: Exception, rank: int, *, fits: bool) -> Failure:
    """Return the failure to report for an error.

    Args:
        error: that ended the process.
        rank: of this process.
        fits: whether the run has saved a checkpoint: then its batch has fitted into a GPU's memory.
    """
    if is_lost_peer(error) and not isinstance(error, TrainerError):
        first_line = str(error).partition("\n")[0][:300]
        error = PeerLost(Reason.PEER_LOST, f"another worker was lost: {first_line}")
    if isinstance(error, TrainerError):
        return Failure(rank=rank, reason=error.reason, message=str(error), exit_code=error.exit_code)
    code = ExitCode.FAILED
    if "out of memory" in str(error).lower():
        reason, hint = Reason.OUT_OF_MEMORY, " (use a smaller spec.train.batch or spec.train.imgsz, or more workers)"
        if type(error).__name__ == "OutOfMemoryError" and not fits:
            code = ExitCode.BAD_INPUT  # of a GPU, whose memory is the same in another attempt
    else:
        reason, hint = Reason.TRAINING_FAILED, ""
    message = f"{type(error).__name__}: {error}{hint}"
    return Failure(rank=rank, reason=reason, message=message, exit_code=code)


def _print_failure(failure: Failure) -> None:
    message = f"yolojob: rank {failure.rank}: {failure.reason}: {failure.message}"
    print(message, file=sys.stderr, flush=True)  # noqa: T201


def _termination_log() -> Path:
    return Path(os.environ.get(constants.ENV_TERMINATION_LOG, constants.TERMINATION_LOG))


def _read_run() -> Run:
    """Return the run from the environment.

    Raises:
        BadInput: there is no valid run.
    """
    try:
        return Run.model_validate_json(os.environ[constants.ENV_RUN])
    except KeyError:
        raise BadInput(Reason.NO_RUN, f"{constants.ENV_RUN} is not set: yolojob starts the workers") from None
    except ValidationError as error:
        raise BadInput(Reason.INVALID_RUN, f"{constants.ENV_RUN}: {error}") from None


def _run_mode(context: RunContext) -> Result | None:
    """Execute the mode of this process; only a training has a result."""
    mode = environment.mode()
    if mode is Mode.INSPECT:
        _inspect(context)
        return None
    context.reporter.set_state(TrainerState.STAGING)
    if mode is Mode.TRAIN:
        return _train(context)
    if mode is Mode.CHECK:
        _check(context)
        return None
    if mode is Mode.TUNE:
        _tune(context)
    else:
        _bench(context)
    return None


def _inspect(context: RunContext) -> None:
    """Count network and data without training."""
    from yolojob_trainer.bench.inspect_job import inspect_job

    profile, facts = inspect_job(context.run, cache=context.cache, volumes=context.volumes)
    context.reporter.conclude(model_profile=profile, data=facts)


def _check(context: RunContext) -> None:
    """Check the dataset, and write the result to a file: it is too large for the report."""
    from yolojob_trainer.check import dataset_check
    from yolojob_trainer.model.resolve import architecture_of

    spec = context.run.spec
    staged = _stage(context, architecture_of(spec.model))  # the weights do not matter
    context.reporter.set_state(TrainerState.CHECKING)
    result = dataset_check.check(
        staged.description, staged.network.task, spec.train.imgsz, context.cache, context.reporter.staging
    )

    def build() -> Trainer:
        return _build_trainer(context, staged, None, [], _startup_times(context, staged))

    dataset_check.add_labels(result, build, context.scratch / "preview.jpg")
    text = result.model_dump_json(by_alias=True)
    (environment.output_dir() / constants.DATASET_CHECK).write_text(text, encoding="utf-8")


def _tune(context: RunContext) -> None:
    """Find the fastest execution settings."""
    run_folder = _open_run_folder(context)
    staged = _stage(context)
    trainer = _build_trainer(context, staged, run_folder, [], _startup_times(context, staged))
    context.reporter.conclude(tuning=trainer.run_trials())


def _bench(context: RunContext) -> None:
    """Measure the parts of the training."""
    from yolojob_trainer.bench.bench import Bench
    from yolojob_trainer.bench.inspect_job import folder_bytes
    from yolojob_trainer.data import job_dataset
    from yolojob_trainer.observability.trace import Trace

    seconds = environment.bench_seconds()  # before the set-up: a wrong value is reported immediately
    run_folder = _open_run_folder(context)
    staged = _stage(context)
    began = time.perf_counter()
    job_dataset.locate(
        context.run.spec.dataset, cache=context.cache, volumes=context.volumes, progress=context.reporter.staging
    )
    cached_seconds = time.perf_counter() - began
    times = _startup_times(context, staged, cached_staging=cached_seconds, staged_bytes=folder_bytes(staged.folder))
    # With a trace, because a training writes one and that takes time.
    callbacks: list[Callback] = [Trace(context.world, run_folder, context.run.attempt)]
    trainer = _build_trainer(context, staged, run_folder, callbacks, times)
    with trainer.prepared():
        context.reporter.conclude(measurement=Bench(trainer, seconds).run())


def _train(context: RunContext) -> Result:
    """Train the run."""
    from yolojob_trainer.observability.prediction_sheet import PredictionSheet
    from yolojob_trainer.observability.trace import ChromeTrace, Trace

    run_folder = _open_run_folder(context)
    staged = _stage(context)
    trace = Trace(context.world, run_folder, context.run.attempt)
    callbacks: list[Callback] = [trace, PredictionSheet(run_folder, context.reporter.warn)]
    if steps := environment.chrome_steps():
        callbacks.append(ChromeTrace(context.world, run_folder, context.scratch, steps))
    trainer = _build_trainer(context, staged, run_folder, callbacks, _startup_times(context, staged))
    trainer.train()
    base = run_folder.uri if run_folder else "rank 0"
    result = Result(weights=f"{base}/weights/best.pt")
    result.set_metrics(trainer.state.best_metrics)
    return result


def _open_run_folder(context: RunContext) -> RunFolder | None:
    """Open the run's folder on rank 0, before staging: a result that cannot be saved must not cost hours of staging."""
    from yolojob_trainer.checkpoint.run_folder import RunFolder

    if not context.world.is_main:
        return None
    return RunFolder(environment.output_dir(), context.run, context.reporter.not_saved)


def _stage(context: RunContext, model: ModelRef | None = None) -> StagedInputs:
    """Bring dataset and weights to this node. All ranks must call it.

    Args:
        context: of the run.
        model: another model than that of the specification.
    """
    from yolojob_trainer.data import job_dataset
    from yolojob_trainer.model import resolve

    spec, cache, volumes = context.run.spec, context.cache, context.volumes
    began = time.perf_counter()
    with context.world.node_leaders_first("staged"):
        folder = job_dataset.locate(spec.dataset, cache=cache, volumes=volumes, progress=context.reporter.staging)
        network = resolve.resolve(model or spec.model, volumes=volumes, cache=cache, task=spec.stated_task)
        node = job_dataset.NodeFolders(cache=cache, volumes=volumes)
        dataset = job_dataset.open_dataset(spec, folder, network.task, node)
        config = dataset.description.write(context.scratch / "dataset")
    return StagedInputs(
        folder=folder,
        boundary=dataset.boundary,
        description=dataset.description,
        config=config,
        network=network,
        seconds=time.perf_counter() - began,
    )


def _startup_times(
    context: RunContext, staged: StagedInputs, *, cached_staging: float = 0.0, staged_bytes: int | None = None
) -> StartupTimes:
    from yolojob_trainer.training.time_account import StartupTimes

    return StartupTimes(
        started=float(os.environ.get(constants.ENV_STARTED) or process_start()),
        rendezvous=context.rendezvous_seconds,
        staging=staged.seconds,
        cached_staging=cached_staging,
        staged_bytes=staged_bytes,
    )


def _build_trainer(
    context: RunContext,
    staged: StagedInputs,
    run_folder: RunFolder | None,
    callbacks: list[Callback],
    times: StartupTimes,
) -> Trainer:
    from yolojob_trainer.system import upstream_log
    from yolojob_trainer.training.setup import TrainerInputs
    from yolojob_trainer.training.trainer import trainer_class

    if context.world.is_main:
        upstream_log.forward(context.reporter.warn, verbose=bool(context.run.spec.train.verbose))
    inputs = TrainerInputs(
        run=context.run,
        world=context.world,
        data_config=staged.config,
        data_boundary=staged.boundary,
        network=staged.network,
        save_dir=run_folder.path if run_folder else context.scratch,
        cache=context.cache,
        warn=context.reporter.warn,
    )
    with _invalid_settings_as_bad_input():
        trainer = trainer_class(staged.network.task)
        return trainer(inputs, run_folder=run_folder, callbacks=[context.reporter, *callbacks], startup_times=times)


@contextmanager
def _invalid_settings_as_bad_input() -> Iterator[None]:
    """Map a ValueError of the trainer's constructor, which checks spec.train, to BadInput."""
    try:
        yield
    except ValueError as error:
        raise BadInput(Reason.INVALID_SETTINGS, f"spec.train: {' '.join(str(error).split())}") from error
