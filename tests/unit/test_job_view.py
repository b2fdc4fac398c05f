"""What the terminal shows about jobs of a cluster."""

from __future__ import annotations

import io
from datetime import UTC, datetime

import pytest
from rich.console import Console
from support import minimal

from yolojob.api.crd import COLUMNS
from yolojob.api.job import YoloTrainingJob
from yolojob.api.status import Condition, ConditionType, YoloTrainingJobStatus
from yolojob.cli import job_view
from yolojob.cli.console import plain_console

NAME = "a-name-that-is-rather-long-for-a-column-of-a-terminal"


def failed_job(message: str) -> YoloTrainingJob:
    """Returns a job with a condition of that message."""
    condition = Condition(
        type=ConditionType.FAILED,
        status="True",
        reason="Failed",
        message=message,
        last_transition_time=datetime.now(UTC),
    )
    job = YoloTrainingJob.model_validate(minimal(NAME))
    job.status = YoloTrainingJobStatus(conditions=[condition])
    return job


def shown(message: str) -> str:
    """Returns what `describe` and `get` print about a job, without a terminal."""
    job = failed_job(message)
    out = io.StringIO()
    console = plain_console()
    console.file = out
    job_view.describe_job(job, [{"message": message, "reason": "[x]", "type": "Warning"}], console)
    job_view.show_jobs([job], console)
    return out.getvalue()


@pytest.mark.parametrize("message", ["[rank0]: RuntimeError", "[/data/images] not found", ":warning: [bold]x[/bold]"])
def test_describe_job_prints_messages_without_markup(message: str) -> None:
    assert shown(message).count(message) >= 2


def test_show_jobs_without_terminal_cuts_nothing_off() -> None:
    last_line = shown("long " * 50).splitlines()[-1]
    assert last_line.startswith(NAME)
    assert not Console(file=io.StringIO()).is_terminal
    assert "…" not in last_line


def test_show_jobs_has_the_columns_of_kubectl_get() -> None:
    out = io.StringIO()
    job_view.show_jobs([failed_job("x")], Console(file=out, width=300))
    assert out.getvalue().splitlines()[0].split() == ["NAME", *(column[0].upper() for column in COLUMNS)]


def test_show_jobs_on_terminal_of_80_columns_folds_the_name() -> None:
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, color_system=None)
    job_view.show_jobs([failed_job("x")], console)
    lines = out.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert lines[0].split()[-1] == "AGE"
    assert len(lines) > 2, "the name takes several lines"
