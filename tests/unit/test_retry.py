"""Pauses between retries: growing, limited, and said in the log when they become long."""

from __future__ import annotations

import random
import time

import pytest
from yolojob_trainer.system import retry
from yolojob_trainer.system.retry import Backoff


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses; a clock of the test's own passes them at once."""
    pauses: list[float] = []
    now = [1000.0]

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(random, "uniform", lambda _low, high: high)
    monkeypatch.setattr(retry, "_last_message", 0.0)
    return pauses


def test_pauses_double_until_the_timeout_and_restart_after_progress(sleeps: list[float]) -> None:
    backoff = Backoff(60.0)
    while backoff.wait(OSError("down")):
        pass
    assert sleeps == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0, 10.0]
    backoff.reset()
    assert backoff.wait(OSError("down"))
    assert sleeps[-1] == 0.25


def test_long_outage_is_said_once_in_ten_seconds_for_all_requests(
    sleeps: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    backoffs = [Backoff(60.0) for _ in range(4)]
    for backoff in backoffs:
        backoff.wait(OSError("down"))
        backoff.wait(OSError("down"))
    assert capsys.readouterr().err == ""
    for _ in range(3):
        for backoff in backoffs:
            backoff.wait(OSError("s3://bucket: down"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "yolojob: s3://bucket: down; retries for 57 s more"
    assert len(lines) == 1 + int(sum(sleeps[8:-1]) // 10)
