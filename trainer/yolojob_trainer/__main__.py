"""One training process: `torchrun -m yolojob_trainer`, or started by `yolojob_trainer.launch`.

Reads the run from YOLOJOB_RUN, trains it, leaves a report where Kubernetes finds it, and ends with one of
`yolojob.api.constants.ExitCode`.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

from pydantic import ValidationError

from yolojob.api import constants
from yolojob.api.constants import ExitCode, Mode
from yolojob.api.reasons import Reason
from yolojob.api.run import Run
from yolojob.api.status import Result
from yolojob.api.trainer_report import Failure, Report, TrainerState
from yolojob_trainer import environment
from yolojob_trainer.errors import BadInput, PeerLost, TrainerError, is_lost_peer
from yolojob_trainer.system.process import process_start

environment.prepare()


def main() -> int:
    """Train; the exit code."""
    rank = int(os.environ.get("RANK", "0"))
    try:
        report = _train(rank)
    except Exception as error:  # noqa: BLE001 - whatever it was, it is told in full, and mapped to an exit code
        failure = _failure(error, rank)
        state = TrainerState.INTERRUPTED if failure.exit_code == ExitCode.INTERRUPTED else TrainerState.FAILED
        report = _last_report() or Report()
        report.state, report.failure = state, failure
        _tell(error, failure)
    if report.failure or rank == 0:
        from yolojob_trainer.observability.progress_report import write_termination_message

        write_termination_message(report, _termination_log())
    return report.failure.exit_code if report.failure else ExitCode.SUCCEEDED


_reporters: list[object] = []


def _last_report() -> Report | None:
    """How far this process came."""
    return next((r.report for r in _reporters), None)  # type: ignore[attr-defined]


def _failure(error: Exception, rank: int) -> Failure:
    if is_lost_peer(error) and not isinstance(error, TrainerError):
        error = PeerLost(Reason.PEER_LOST, f"another worker went away: {str(error).partition(chr(10))[0][:300]}")
    if isinstance(error, TrainerError):
        return Failure(rank=rank, reason=error.reason, message=str(error), exit_code=error.exit_code)
    if "out of memory" in str(error).lower():
        reason, hint = Reason.OUT_OF_MEMORY, " (use a smaller spec.train.batch or spec.train.imgsz, or more workers)"
    else:
        reason, hint = Reason.TRAINING_FAILED, ""
    message = f"{type(error).__name__}: {error}{hint}"
    return Failure(rank=rank, reason=reason, message=message, exit_code=ExitCode.FAILED)


def _tell(error: Exception, failure: Failure) -> None:
    if failure.exit_code == ExitCode.FAILED and not isinstance(error, TrainerError):
        traceback.print_exc()
    print(f"yolojob: rank {failure.rank}: {failure.reason}: {failure.message}", file=sys.stderr, flush=True)  # noqa: T201


def _end_without(who: str, rank: int) -> None:
    """End this process: a peer is lost, and the main thread may wait for it for ever."""
    from yolojob_trainer.observability.progress_report import write_termination_message

    message = f"another worker went away: {who}"
    report = _last_report() or Report()
    report.state = TrainerState.FAILED
    report.failure = Failure(rank=rank, reason=Reason.PEER_LOST, message=message, exit_code=ExitCode.PEER_LOST)
    print(f"yolojob: rank {rank}: PeerLost: {message}", file=sys.stderr, flush=True)  # noqa: T201
    write_termination_message(report, _termination_log())
    os._exit(ExitCode.PEER_LOST)


def _termination_log() -> Path:
    return Path(os.environ.get(constants.ENV_TERMINATION_LOG, constants.TERMINATION_LOG))


def _train(rank: int) -> Report:
    try:
        run = Run.model_validate_json(os.environ[constants.ENV_RUN])
    except KeyError:
        raise BadInput(Reason.NO_RUN, f"{constants.ENV_RUN} is not set: workers are started by yolojob") from None
    except ValidationError as error:
        raise BadInput(Reason.INVALID_RUN, f"{constants.ENV_RUN}: {error}") from None

    # Only now: these take a second and more to import.
    from yolojob_trainer.distributed.world import World
    from yolojob_trainer.observability import metrics as prometheus
    from yolojob_trainer.observability.progress_report import Reporter

    metrics = prometheus.Metrics(namespace=run.namespace, job_name=run.name, rank=rank)
    world = World.from_env(run.spec.workers.gpu, lambda who: _end_without(who, rank))
    reporter = Reporter(metrics, world_size=world.world_size)
    _reporters.append(reporter)
    if port := int(os.environ.get(constants.ENV_METRICS_PORT, constants.METRICS_PORT)):
        prometheus.serve(metrics, reporter.snapshot, port + world.local_rank)
    rendezvous = _waited_for_launcher()
    began = time.perf_counter()
    with world.connected(), tempfile.TemporaryDirectory(prefix="yolojob-") as scratch:
        rendezvous += time.perf_counter() - began
        result = _train_in(world, run, reporter, Path(scratch), rendezvous)
    if result:
        reporter.succeed(result)
    return reporter.report


def _train_in(world, run: Run, reporter, scratch: Path, rendezvous: float) -> Result | None:  # type: ignore[no-untyped-def]
    from yolojob_trainer.bench import inspect_job
    from yolojob_trainer.checkpoint.run_folder import Storage
    from yolojob_trainer.data import dataset_config
    from yolojob_trainer.model import resolve
    from yolojob_trainer.observability.trace import ChromeTrace, Trace
    from yolojob_trainer.training.callbacks import Callback
    from yolojob_trainer.training.phase_clock import Beginning
    from yolojob_trainer.training.trainer import Trainer

    cache, volumes = environment.cache_dir(), environment.volumes_dir()
    mode = environment.mode()
    if mode is Mode.INSPECT:
        inspect_job.run(run, reporter, cache=cache, volumes=volumes)
        return None
    reporter.say(TrainerState.STAGING)
    began = time.perf_counter()
    # Before hours are spent on the data: whether the result can be kept.
    storage = Storage(environment.output_dir(), run.spec, reporter.not_saved) if world.is_main else None
    with world.node_first("staged"):
        folder = dataset_config.locate(run.spec.dataset, cache=cache, volumes=volumes, progress=reporter.staging)
        config = dataset_config.write_config(
            dataset_config.describe(folder, run.spec.dataset.config), cache / "configs"
        )
        model = resolve.resolve(run.spec.model, volumes=volumes, cache=cache)
    staging = time.perf_counter() - began
    cached_staging, staged_bytes = 0.0, None
    if mode is Mode.BENCH:
        began = time.perf_counter()
        dataset_config.locate(run.spec.dataset, cache=cache, volumes=volumes, progress=reporter.staging)
        cached_staging = time.perf_counter() - began
        staged_bytes = inspect_job.size(folder)
    callbacks: list[Callback] = [reporter]
    if mode is not Mode.TUNE:  # a bench writes one, too: it takes its time
        callbacks.append(Trace(world, storage, run.attempt))
    if (steps := environment.chrome_steps()) and mode is Mode.TRAIN:
        callbacks.append(ChromeTrace(world, storage, scratch, steps))
    try:
        trainer = Trainer(
            run,
            world,
            data=config,
            model=model,
            storage=storage,
            scratch=scratch,
            cache=cache,
            callbacks=callbacks,
            warn=reporter.warn,
            beginning=Beginning(
                started=float(os.environ.get(constants.ENV_STARTED) or process_start()),
                rendezvous=rendezvous,
                staging=staging,
                cached_staging=cached_staging,
                staged_bytes=staged_bytes,
            ),
        )
    except ValueError as error:
        raise BadInput(Reason.INVALID_SETTINGS, f"spec.train: {' '.join(str(error).split())}") from error
    if mode is Mode.TUNE:
        reporter.conclude(tuning=trainer.measure())
        return None
    if mode is Mode.BENCH:
        reporter.conclude(measurement=trainer.bench(environment.bench_seconds()))
        return None
    trainer.train()
    base = storage.uri if storage else "rank 0"
    return Result(weights=f"{base}/weights/best.pt", **trainer.best_metrics)


def _waited_for_launcher() -> float:
    """Seconds that torchrun has waited for the other workers before it started this process."""
    launched = os.environ.get(constants.ENV_LAUNCHED)
    return max(process_start() - float(launched), 0.0) if launched else 0.0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: destructors of process groups and loaders may wait for peers that are gone.
    os._exit(code)
