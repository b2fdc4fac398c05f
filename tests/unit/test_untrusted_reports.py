"""Reports of workers are untrusted: no report can produce a status that the API server refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.plans import job, make_plan, pod
from yolojob_operator.plan.pod_failures import report_of

from yolojob.api.trainer_report import Report

HOSTILE: list[dict[str, Any]] = [
    {"progress": {"epoch": 10**25, "epochs": 10**25}},
    {"progress": {"epoch": 1, "epochs": 2, "eta": "9999-12-31T23:59:59-23:59"}},
    {"progress": {"epoch": 1, "epochs": 2, "eta": "0001-01-01T00:00:00+23:59"}},
    {"timing": {"trainingSeconds": {"forward": 1e308, "backward": 1e308}}},
    {"timing": {"trainingSeconds": {"x" * 7900: 1.0}}},
    {"timing": {"trainingSeconds": {"forward\nx": 1.0}}},
    {"timing": {"validationSeconds": 1e300}},
    {"result": {"weights": "x" * 100_000}},
    {"failure": {"reason": "A" * 5000, "message": "", "exitCode": 1}},
]


@pytest.mark.parametrize("content", HOSTILE)
def test_report_beyond_the_bounds_is_no_report(content: dict[str, Any]) -> None:
    assert report_of(pod(0, "Failed", message=json.dumps(content))) is None


numbers = st.integers() | st.floats() | st.text(max_size=30)
reports = st.fixed_dictionaries(
    {
        "progress": st.dictionaries(
            st.sampled_from(
                ["epoch", "epochs", "step", "steps", "loss", "map50", "eta", "imagesPerSecond", "updatedAt"]
            ),
            numbers,
        ),
        "timing": st.dictionaries(
            st.sampled_from(["stagingSeconds", "startupSeconds", "validationSeconds", "runningSeconds"]), numbers
        ),
    }
)


@given(reports)
def test_status_after_any_report_is_plain_json(content: dict[str, Any]) -> None:
    try:
        report = Report.model_validate_json(json.dumps(content))
    except ValueError:
        return
    started = make_plan(job()).status
    planned = make_plan(job(started), pod(0), pod(1), report=report)
    text = planned.status.model_dump_json(by_alias=True, exclude_none=True)
    assert len(text) < 20_000
    assert "NaN" not in json.dumps(json.loads(text))
    assert make_plan(job(planned.status), pod(0), pod(1), report=report).status
