"""The `helm test` job, `python -m yolojob_operator.smoke_test FILE`: submits a job, prints its progress, and deletes
it.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from yolojob.api import constants, manifest
from yolojob.api.status import ConditionType, JobPhase, YoloTrainingJobStatus
from yolojob_operator.kube.api_client import ApiClient, ApiError
from yolojob_operator.kube.types import Object
from yolojob_operator.plan.conditions import find

POLL_INTERVAL_SECONDS = 1.0
app = typer.Typer(pretty_exceptions_enable=False)


@app.command()
def main(
    file: Annotated[Path, typer.Argument(help="Manifest of the job.")],
    namespace: Annotated[str, typer.Option(help="Namespace in which it runs.")],
    seconds: Annotated[float, typer.Option(help="Time within which the job must end, including the image pull.")],
) -> None:
    """Run a job; exit with 1 unless it succeeds."""
    job = manifest.parse(manifest.load(file)).to_json()
    job["metadata"]["namespace"] = namespace
    job.pop("status", None)
    try:
        phase = asyncio.run(_run(job, seconds))
    except (ApiError, TimeoutError) as error:
        print(error)  # noqa: T201
        sys.exit(1)
    sys.exit(0 if phase is JobPhase.SUCCEEDED else 1)


async def _run(job: Object, seconds: float) -> JobPhase:
    api = await ApiClient.connect()
    try:
        end = time.monotonic() + seconds
        await _delete(api, job, end)  # left by an interrupted test
        await api.create(job)
        try:
            return await _print_until_finished(api, job, end)
        finally:
            await _delete(api, job, time.monotonic() + seconds)
    finally:
        await api.close()


async def _print_until_finished(api: ApiClient, job: Object, end: float) -> JobPhase:
    printed = ""
    while True:
        current = await api.get(job)
        if current is None:
            raise TimeoutError(f"{job['metadata']['name']} was deleted by another client")
        status = YoloTrainingJobStatus.model_validate(current.get("status") or {})
        if (line := _status_line(status)) != printed:
            printed = line
            print(line, flush=True)  # noqa: T201
        if status.phase in (JobPhase.SUCCEEDED, JobPhase.FAILED):
            return status.phase
        await _wait(end, "the job has not ended: check the operator's log, and whether the cluster can pull its images")


async def _delete(api: ApiClient, job: Object, end: float) -> None:
    while current := await api.get(job):
        metadata: dict[str, Any] = current["metadata"]
        await api.delete_job(metadata["namespace"], metadata["name"], metadata["uid"])
        await _wait(end, "the job cannot be deleted")


async def _wait(end: float, message: str) -> None:
    """Wait until the next poll.

    Raises:
        TimeoutError: the end has passed; with this message.
    """
    if time.monotonic() >= end:
        raise TimeoutError(message)
    await asyncio.sleep(POLL_INTERVAL_SECONDS)


def _status_line(status: YoloTrainingJobStatus) -> str:
    if status.phase is JobPhase.FAILED and (failed := find(status, ConditionType.FAILED)):
        return f"Failed: {failed.reason}: {failed.message}"
    rejected = find(status, ConditionType.ACCEPTED)
    if rejected and rejected.status == "False":
        return f"{constants.KIND} not accepted: {rejected.reason}: {rejected.message}"
    epoch = f", {status.progress.epoch} of {status.progress.epochs} epochs" if status.progress else ""
    return f"{status.phase}{epoch}"


if __name__ == "__main__":
    app()
