"""Writes the final report as the termination message of the container, within the size limit of Kubernetes."""

from __future__ import annotations

from pathlib import Path

from yolojob.api.constants import TERMINATION_LIMIT, ExitCode
from yolojob.api.trainer_report import Report


def write_termination_message(report: Report, path: Path) -> None:
    """Write the report to the file that Kubernetes reads.

    Several local ranks share the file. A rank that only lost its peer never overwrites the report of the root cause.
    """
    consequence = report.failure is not None and report.failure.exit_code in (ExitCode.PEER_LOST, ExitCode.INTERRUPTED)
    try:
        if consequence and path.exists() and path.stat().st_size:
            return
        path.write_text(shorten(report))
    except OSError as error:
        # Only the pod's log is left.
        print(f"The report could not be written to {path}: {error}", flush=True)  # noqa: T201


def shorten(report: Report, limit: int = TERMINATION_LIMIT) -> str:
    """Return the report as JSON of at most `limit` bytes.

    Trials are removed first, then warnings, then the end of the failure's message.
    """
    report = report.model_copy(deep=True)
    text = report.model_dump_json(by_alias=True, exclude_none=True)
    while len(text.encode()) > limit:
        if report.tuning and report.tuning.trials:
            report.tuning.trials = report.tuning.trials[:-1]
        elif report.warnings:
            report.warnings = report.warnings[1:]
        elif report.failure and len(report.failure.message) > 16:
            excess = len(text.encode()) - limit
            keep = max(len(report.failure.message) - excess - 8, 8)
            report.failure.message = report.failure.message[:keep].rstrip() + " …"
        else:
            return Report(state=report.state).model_dump_json(by_alias=True, exclude_none=True)
        text = report.model_dump_json(by_alias=True, exclude_none=True)
    return text
