"""Benches, run: here as a local run, in a cluster as an ordinary short job."""

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
from yolojob.cli.local_run_view import INTERRUPTED, follow_local_run, own_code
from yolojob.client.client import Client
from yolojob.client.local_run import LocalRun, Places
from yolojob.estimation.bench_records import Record
from yolojob.estimation.target import LOCAL, Target

PENDING_SECONDS = 900
"""A bench whose pods do not run after so long is given up, with the reason."""
KEPT_SECONDS = 3600
"""A bench's job that nobody could delete deletes itself after so long."""


class BenchFailed(UserError):
    """In words for people."""

    def __init__(self, words: str, code: int = ExitCode.FAILED) -> None:
        super().__init__(words)
        self.code = code


def run_here(job: YoloTrainingJob, places: Places, mode: Mode, seconds: int, console: Console) -> Report:
    """Run a bench, trials or an inspection on this machine, and keep nothing.

    Raises:
        InvalidManifest: this machine cannot run the job.
        BenchFailed: it could not be measured.
    """
    with tempfile.TemporaryDirectory(prefix="yolojob-") as folder:
        job = job.model_copy(deep=True)
        job.spec.storage = None  # nothing is kept, and no checkpoint is taken up
        local = LocalRun(
            job, Places(runs=Path(folder), volumes=places.volumes, cache=places.cache), mode=mode, seconds=seconds
        )
        code, interrupted = follow_local_run(local, live_view.LiveView(job.metadata.name, console))
        report = local.report(code)
        log = local.log.read_text()[-3000:] if code == ExitCode.FAILED else ""
        local.close(code)
    if interrupted:
        raise BenchFailed("interrupted", INTERRUPTED)
    if code != ExitCode.SUCCEEDED:
        failure = report.failure
        words = f"{failure.reason}: {failure.message}" if failure else f"exit code {code}"
        raise BenchFailed("\n".join(filter(None, (log, words))), own_code(code))
    return report


def bench_here(job: YoloTrainingJob, places: Places, target: Target, seconds: int, console: Console) -> Record:
    """Bench a job on this machine.

    Raises:
        InvalidManifest: this machine cannot run the job.
        BenchFailed: it could not be measured.
    """
    job = job.model_copy(deep=True)
    job.spec.workers.replicas = target.workers or job.spec.workers.replicas
    job.spec.elastic = None
    report = run_here(job, places, Mode.BENCH, seconds, console)
    assert report.measurement is not None
    return Record(target=LOCAL, measurement=report.measurement)


def bench_in_cluster(
    job: YoloTrainingJob, target: Target, namespace: str | None, seconds: int, say: Callable[[str], None]
) -> Record:
    """Bench a job in a cluster, as a job of its own that is deleted at the end.

    Args:
        job: what is measured.
        target: the context, and which workers.
        namespace: where; the context's own unless given.
        seconds: time for the measurements.
        say: told how far it is.

    Raises:
        ClusterError: the cluster is not to be reached, or refuses.
        BenchFailed: it could not be measured.
    """
    client = Client(target.context, namespace or job.metadata.namespace)
    short = _short(job, target, seconds)
    name = short.metadata.name
    client.submit(short)
    try:
        status = _wait(client, name, say)
        report = client.report(name)
        if status.phase is JobPhase.FAILED or report is None or report.measurement is None:
            raise BenchFailed(f"{target.text}: {_why(status)}", _code(report))
        return _record(client, name, target, status, report)
    finally:
        client.delete(name)


def _short(job: YoloTrainingJob, target: Target, seconds: int) -> YoloTrainingJob:
    """The job that measures in place of training."""
    short = job.model_copy(deep=True, update={"status": None})
    short.metadata.name = f"{job.metadata.name[:36]}-bench-{uuid.uuid4().hex[:6]}"
    spec = short.spec
    spec.storage, spec.elastic, spec.tuning = None, None, Tuning()
    spec.workers.replicas = target.workers or spec.workers.replicas
    if target.gpu:
        count = spec.workers.gpu.count if spec.workers.gpu else 1
        spec.workers.gpu = Gpu(count=count, types=[target.gpu])
    spec.run_policy = RunPolicy(
        backoff_limit=0,
        clean_pod_policy="None",  # its last words are the measurement
        ttl_seconds_after_finished=KEPT_SECONDS,
        pre_running_deadline_seconds=spec.run_policy.pre_running_deadline_seconds or PENDING_SECONDS,
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
    return short


def _wait(client: Client, name: str, say: Callable[[str], None]) -> YoloTrainingJobStatus:
    told = ""
    for change, job in client.watch(name, known=True):
        if change == "DELETED":
            break
        if (line := job_view.job_line(job)) != told:
            told = line
            say(line)
        refused = _condition(job.status, ConditionType.ACCEPTED)
        if job.has_ended and job.status:
            return job.status
        if refused and refused[0] == "False":
            raise BenchFailed(refused[1], ExitCode.BAD_INPUT)
    raise ClusterError(f"{name} was deleted by somebody else")


def _condition(status: YoloTrainingJobStatus | None, kind: ConditionType) -> tuple[str, str] | None:
    """(status, words) of a condition."""
    found = next((c for c in status.conditions if c.type is kind), None) if status else None
    return (found.status, f"{found.reason}: {found.message}") if found else None


def _why(status: YoloTrainingJobStatus) -> str:
    failed = _condition(status, ConditionType.FAILED)
    return failed[1] if failed else "it left no measurement: is its image older than this command?"


def _code(report: Report | None) -> int:
    bad = report is not None and report.failure is not None and report.failure.exit_code == ExitCode.BAD_INPUT
    return ExitCode.BAD_INPUT if bad else ExitCode.FAILED


def _record(client: Client, name: str, target: Target, status: YoloTrainingJobStatus, report: Report) -> Record:
    assert report.measurement is not None
    timing, attempt = status.timing, status.history[-1] if status.history else None
    waits = {part.value: timing.parts[part] for part in in_group(TimeGroup.WAITING)} if timing else {}
    price = attempt.per_worker_hour if attempt else None
    currency = attempt.currency if attempt else None
    words = (status.cost.price_source or "") if status.cost else ""
    if price is None and (hourly := client.hourly_cost(name)) is not None:
        price, currency, words = hourly, "USD", "OpenCost, of the whole node"
    return Record(
        target=target.place,
        waits=waits,
        per_worker_hour=price,
        currency=currency,
        price_source=words,
        measurement=report.measurement,
    )
