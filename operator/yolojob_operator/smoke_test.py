"""`python -m yolojob_operator.smoke_test FILE`: submits a job, follows it, and deletes it. `helm test` runs this."""

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
    namespace: Annotated[str, typer.Option(help="Where to run it.")],
    seconds: Annotated[
        float, typer.Option(help="It must have ended within this time; the image may have to be pulled.")
    ],
) -> None:
    """Run a job, and fail unless it succeeds."""
    job = manifest.parse(manifest.load(file)).to_json()
    job["metadata"]["namespace"] = namespace
    job.pop("status", None)
    try:
        phase = asyncio.run(_try(job, seconds))
    except (ApiError, TimeoutError) as error:
        print(error)  # noqa: T201
        sys.exit(1)
    sys.exit(0 if phase is JobPhase.SUCCEEDED else 1)


async def _try(job: Object, seconds: float) -> JobPhase:
    cluster = await ApiClient.connect(lambda *_: None)
    try:
        end = time.monotonic() + seconds
        await _delete(cluster, job, end)  # left by a trial that was cut short
        await cluster.create(job)
        try:
            return await _follow(cluster, job, end)
        finally:
            await _delete(cluster, job, time.monotonic() + seconds)
    finally:
        await cluster.close()


async def _follow(cluster: ApiClient, job: Object, end: float) -> JobPhase:
    told = ""
    while True:
        found = await cluster.get(job)
        if found is None:
            raise TimeoutError(f"{job['metadata']['name']} was deleted by somebody else")
        status = YoloTrainingJobStatus.model_validate(found.get("status") or {})
        if (words := _words(status)) != told:
            told = words
            print(words, flush=True)  # noqa: T201
        if status.phase in (JobPhase.SUCCEEDED, JobPhase.FAILED):
            return status.phase
        await _pause(end, "it has not ended: is the operator well, and does the cluster find its images?")


async def _delete(cluster: ApiClient, job: Object, end: float) -> None:
    while found := await cluster.get(job):
        metadata: dict[str, Any] = found["metadata"]
        await cluster.delete_job(metadata["namespace"], metadata["name"], metadata["uid"])
        await _pause(end, "it cannot be deleted")


async def _pause(end: float, words: str) -> None:
    if time.monotonic() >= end:
        raise TimeoutError(words)
    await asyncio.sleep(POLL_INTERVAL_SECONDS)


def _words(status: YoloTrainingJobStatus) -> str:
    if status.phase is JobPhase.FAILED and (failed := find(status, ConditionType.FAILED)):
        return f"Failed: {failed.reason}: {failed.message}"
    rejected = find(status, ConditionType.ACCEPTED)
    if rejected and rejected.status == "False":
        return f"{constants.KIND} not accepted: {rejected.reason}: {rejected.message}"
    epoch = f", {status.progress.epoch} of {status.progress.epochs} epochs" if status.progress else ""
    return f"{status.phase}{epoch}"


if __name__ == "__main__":
    app()
