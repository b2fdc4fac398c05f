"""Runs benches: on this machine as a local run, in a cluster as an ordinary short job."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from yolojob.api import constants
from yolojob.api.constants import ExitCode, Mode
from yolojob.api.errors import ClusterError, UserError
from yolojob.api.job import YoloTrainingJob
from yolojob.api.spec import Gpu, RunPolicy, Tuning
from yolojob.api.status import ConditionType, JobPhase, YoloTrainingJobStatus
from yolojob.api.time_parts import TimeGroup, in_group
from yolojob.api.trainer_report import Report
from yolojob.cli import job_view, live_view
from yolojob.cli.local_run_view import INTERRUPTED, command_exit_code, follow_local_run
from yolojob.client.client import Client
from yolojob.client.local_run import LocalRun, Places
from yolojob.estimation.bench_records import Record
from yolojob.estimation.target import LOCAL, Target

PENDING_TIMEOUT_SECONDS = 900
"""A bench fails, with the reason, when its pods are not running after this time."""
TTL_SECONDS = 3600
"""A bench's job that this command could not delete is deleted by the operator after this time."""


class BenchFailed(UserError):
    """A bench could not be run; the message gives the reason."""

    def __init__(self, message: str, code: int = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.code = code


def run_here(
    job: YoloTrainingJob,
    places: Places,
    mode: Mode,
    seconds: int,
    console: Console,
    collect: Callable[[Path], None] = lambda _: None,
) -> Report:
    """Run a bench, trials, an inspection or a check on this machine, and keep no files.

    Args:
        job: to run.
        places: folders on this machine.
        mode: of the trainer.
        seconds: duration of a bench's measurements.
        console: shows the progress.
        collect: called with the folder of the files, if the run succeeds.

    Raises:
        InvalidManifest: this machine cannot run the job.
        BenchFailed: the run failed or was interrupted.
    """
    with tempfile.TemporaryDirectory(prefix="yolojob-") as folder:
        job = job.model_copy(deep=True)
        job.spec.storage = None  # keeps no files, and resumes from no checkpoint
        local = LocalRun(
            job, Places(runs=Path(folder), volumes=places.volumes, cache=places.cache), mode=mode, seconds=seconds
        )
        code, interrupted = follow_local_run(local, live_view.LiveView(job.metadata.name, console))
        report = local.report(code)
        log = local.log.read_text()[-3000:] if code == ExitCode.FAILED else ""
        if code == ExitCode.SUCCEEDED:
            collect(local.output)
        local.close(code)
    if interrupted:
        raise BenchFailed("interrupted", INTERRUPTED)
    if code != ExitCode.SUCCEEDED:
        failure = report.failure
        message = f"{failure.reason}: {failure.message}" if failure else f"exit code {code}"
        raise BenchFailed("\n".join(filter(None, (log, message))), command_exit_code(code))
    return report


def bench_here(job: YoloTrainingJob, places: Places, target: Target, seconds: int, console: Console) -> Record:
    """Measure a job on this machine.

    Raises:
        InvalidManifest: this machine cannot run the job.
        BenchFailed: the run failed or was interrupted.
    """
    job = job.model_copy(deep=True)
    job.spec.workers.replicas = target.workers or job.spec.workers.replicas
    job.spec.elastic = None
    report = run_here(job, places, Mode.BENCH, seconds, console)
    assert report.measurement is not None
    return Record(target=LOCAL, measurement=report.measurement)


def bench_in_cluster(
    job: YoloTrainingJob, target: Target, namespace: str | None, seconds: int, on_progress: Callable[[str], None]
) -> Record:
    """Measure a job in a cluster, by a separate job that is deleted at the end.

    Args:
        job: the job to measure.
        target: the context, the GPU type and the number of workers.
        namespace: namespace of the bench's job. Default: the job's, or the context's.
        seconds: duration of the measurements.
        on_progress: called with a line of text whenever the state changes.

    Raises:
        ClusterError: the cluster cannot be reached, or rejects the job.
        BenchFailed: the run failed or was interrupted.
    """
    client = Client(target.context, namespace or job.metadata.namespace)
    bench_job = _bench_job(job, target, seconds)
    name = bench_job.metadata.name
    client.submit(bench_job)
    try:
        status = _wait_until_finished(client, name, on_progress)
        report = client.report(name)
        if status.phase is JobPhase.FAILED or report is None or report.measurement is None:
            raise BenchFailed(f"{target.text}: {_failure_message(status)}", _exit_code(report))
        return _record(client, name, target, status, report)
    finally:
        client.delete(name)


def _bench_job(job: YoloTrainingJob, target: Target, seconds: int) -> YoloTrainingJob:
    """The job that measures instead of training."""
    bench_job = job.model_copy(deep=True, update={"status": None})
    bench_job.metadata.name = f"{job.metadata.name[:36]}-bench-{uuid.uuid4().hex[:6]}"
    spec = bench_job.spec
    spec.storage, spec.elastic, spec.tuning = None, None, Tuning()
    spec.workers.replicas = target.workers or spec.workers.replicas
    if target.gpu:
        count = spec.workers.gpu.count if spec.workers.gpu else 1
        spec.workers.gpu = Gpu(count=count, types=[target.gpu])
    spec.run_policy = RunPolicy(
        backoff_limit=0,
        clean_pod_policy="None",  # the measurement is the pod's termination message
        ttl_seconds_after_finished=TTL_SECONDS,
        pre_running_deadline_seconds=spec.run_policy.pre_running_deadline_seconds or PENDING_TIMEOUT_SECONDS,
    )
    environment = [
        {"name": constants.ENV_MODE, "value": Mode.BENCH.value},
        {"name": constants.ENV_BENCH_SECONDS, "value": str(seconds)},
    ]
    containers: list[dict[str, Any]] = spec.workers.template.setdefault("spec", {}).setdefault("containers", [])
    trainer = next((c for c in containers if c.get("name") == constants.CONTAINER), None)
    if trainer is None:
        containers.append({"name": constants.CONTAINER, "env": environment})
    else:
        trainer["env"] = [*trainer.get("env", []), *environment]
    return bench_job


def _wait_until_finished(client: Client, name: str, on_progress: Callable[[str], None]) -> YoloTrainingJobStatus:
    last_line = ""
    for change, job in client.watch(name, known=True):
        if change == "DELETED":
            break
        if (line := job_view.job_line(job)) != last_line:
            last_line = line
            on_progress(line)
        accepted = _condition(job.status, ConditionType.ACCEPTED)
        if job.has_ended and job.status:
            return job.status
        if accepted and accepted[0] == "False":
            raise BenchFailed(accepted[1], ExitCode.BAD_INPUT)
    raise ClusterError(f"{name} was deleted while the bench was running")


def _condition(status: YoloTrainingJobStatus | None, kind: ConditionType) -> tuple[str, str] | None:
    """(status, "reason: message") of a condition; None if it is not set."""
    condition = next((c for c in status.conditions if c.type is kind), None) if status else None
    return (condition.status, f"{condition.reason}: {condition.message}") if condition else None


def _failure_message(status: YoloTrainingJobStatus) -> str:
    failed = _condition(status, ConditionType.FAILED)
    return failed[1] if failed else "no measurement was reported; the trainer image may be older than this command"


def _exit_code(report: Report | None) -> int:
    bad_input = report is not None and report.failure is not None and report.failure.exit_code == ExitCode.BAD_INPUT
    return ExitCode.BAD_INPUT if bad_input else ExitCode.FAILED


def _record(client: Client, name: str, target: Target, status: YoloTrainingJobStatus, report: Report) -> Record:
    assert report.measurement is not None
    timing, attempt = status.timing, status.history[-1] if status.history else None
    waits = {part.value: timing.parts[part] for part in in_group(TimeGroup.WAITING)} if timing else {}
    price = attempt.per_worker_hour if attempt else None
    currency = attempt.currency if attempt else None
    source = (status.cost.price_source or "") if status.cost else ""
    if price is None and (hourly := client.hourly_cost(name)) is not None:
        price, currency, source = hourly, "USD", "OpenCost, for the whole node"
    return Record(
        target=target.place,
        waits=waits,
        per_worker_hour=price,
        currency=currency,
        price_source=source,
        measurement=report.measurement,
    )
