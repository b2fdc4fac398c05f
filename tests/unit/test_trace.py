"""The trace of a training: spans without gaps, written as lines and as a Chrome trace."""

from __future__ import annotations

import gzip
import json

import pytest
from support.processes import Gangs
from yolojob_trainer.training.span import Span
from yolojob_trainer.training.time_account import TimeAccount

from yolojob.api.time_parts import TimePart


@pytest.mark.torch
def test_phase_clock_marks_leave_no_gap_between_spans() -> None:
    import torch
    from yolojob_trainer.training.phase_clock import PhaseClock

    clock = PhaseClock(torch.device("cpu"))
    clock.start()
    clock.mark(TimePart.DATA_WAIT)
    clock.mark(TimePart.FORWARD, at=clock.now())
    clock.reduced(1.0, 1.5)
    clock.end(TimePart.OTHER, epoch=0, step=3, images=8)
    clock.end(TimePart.VALIDATION, epoch=0, step=4)
    step, validation = clock.completed()
    assert clock.completed() == []
    assert (step.step, step.images, step.reduction) == (3, 8, 0.5)
    assert [phase for phase, _ in step.parts] == [TimePart.DATA_WAIT, TimePart.FORWARD, TimePart.OTHER]
    assert validation.images == 0
    assert validation.start == pytest.approx(step.start + step.duration, abs=1e-9)


def test_clocks_sum_spans_by_phase() -> None:
    clocks = TimeAccount(staging=1.0, startup=2.0)
    parts = [(TimePart.FORWARD, 0.25), (TimePart.FORWARD, 0.25), (TimePart.OTHER, 0.125)]
    clocks.add(Span(epoch=0, step=0, images=8, start=0.0, parts=parts, reduction=0.5))
    clocks.add(Span(epoch=0, step=1, images=0, start=0.0, parts=[(TimePart.VALIDATION, 3.0)]))
    clocks.add(Span(epoch=0, step=1, images=0, start=0.0, parts=[(TimePart.CHECKPOINT, 4.0)]))
    timing = clocks.timing()
    assert timing.training_seconds == {"forward": 0.5, "other": 0.125}
    assert (timing.staging_seconds, timing.startup_seconds) == (1.0, 2.0)
    assert (timing.validation_seconds, timing.checkpoint_seconds) == (3.0, 4.0)
    assert timing.all_reduce_with_overlap_seconds == 0.5


@pytest.mark.torch
def test_span_is_written_as_line_and_as_chrome_events() -> None:
    from yolojob_trainer.observability.trace import phase_events, span_record

    parts = [(TimePart.DATA_WAIT, 0.25), (TimePart.FORWARD, 0.5)]
    span = Span(epoch=1, step=2, images=16, start=1_000.5, parts=parts, reduction=0.125)
    assert span_record(span) == {
        "epoch": 1,
        "step": 2,
        "start": 1_000.5,
        "images": 16,
        "seconds": {"data_wait": 0.25, "forward": 0.5},
        "allReduceWithOverlap": 0.125,
    }
    name, wait, forward = phase_events([span], base=1_000 * 10**9, rank=3)
    assert name["args"] == {"name": "phases"}
    assert (wait["name"], wait["ts"], wait["dur"]) == ("data_wait", 500_000, 250_000)
    assert (forward["name"], forward["ts"], forward["dur"]) == ("forward", 750_000, 500_000)
    assert forward["args"] == {"epoch": 2, "step": 3, "images": 16}


def test_chrome_trace_of_each_rank_has_its_operators_within_its_phases(gangs: Gangs) -> None:
    gang = gangs(2, replicas=2, train={"epochs": 2}, environment={"YOLOJOB_TRACE_STEPS": "3"})
    assert gang.wait() == [0, 0], gang.log()
    for rank in range(2):
        data = (gang.output / "trace" / f"rank-{rank}.chrome.json.gz").read_bytes()
        events = json.loads(gzip.decompress(data))["traceEvents"]
        phases = [e for e in events if e.get("cat") == "phase"]
        assert {"data_wait", "forward", "loss", "backward", "all_reduce", "optimizer", "ema"} <= {
            e["name"] for e in phases
        }
        backward = [(e["ts"], e["ts"] + e["dur"]) for e in phases if e["name"] == "backward"]
        operators = [e for e in events if e.get("cat") == "cpu_op" and e["name"] == "aten::convolution_backward"]
        assert len(operators) >= 3 * 30
        slack = 300.0  # microseconds, difference of the two clocks
        outside = [o for o in operators if not any(a - slack <= o["ts"] <= b + slack for a, b in backward)]
        assert not outside


def test_chrome_trace_longer_than_the_training_is_written_at_its_end(gangs: Gangs) -> None:
    gang = gangs(1, replicas=1, train={"epochs": 1}, environment={"YOLOJOB_TRACE_STEPS": "500"})
    assert gang.wait() == [0], gang.log()
    assert gzip.decompress((gang.output / "trace" / "rank-0.chrome.json.gz").read_bytes())
