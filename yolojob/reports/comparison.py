"""Compares options: the data behind the page and the picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolojob.api.job import YoloTrainingJob
from yolojob.estimation.estimator import Estimator
from yolojob.estimation.option import Option, option_json
from yolojob.estimation.recommendation import BreakEven, break_even, pareto, recommend
from yolojob.reports import run_files


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Estimated options and the recommendation."""

    name: str
    epochs: int
    options: list[Option]
    recommendation: str
    assumptions: list[str]
    buying: BreakEven | None
    curve: list[run_files.Epoch]
    """Validated epochs of a finished run of this job; empty without one."""


def build_comparison(
    job: YoloTrainingJob, estimator: Estimator, options: list[Option], curve: Path | None
) -> Comparison:
    """Compare the options.

    Args:
        job: the job.
        estimator: has the assumptions.
        options: at least one.
        curve: folder of a finished run of this job; None without one.

    Raises:
        NoRun: `curve` is not the folder of a run.
    """
    options = sorted(options, key=lambda o: o.seconds)
    assumptions = estimator.assumptions.model_dump(by_alias=True, exclude_none=True)
    epochs = run_files.epochs(curve) if curve else []
    return Comparison(
        name=job.metadata.name,
        epochs=job.spec.train.epochs,
        options=options,
        recommendation=recommend(options, estimator.assumptions),
        assumptions=[f"{key} = {value}" for key, value in assumptions.items()],
        buying=break_even(options, estimator.assumptions),
        curve=[e for e in epochs if e.score is not None],
    )


def to_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison as plain data, for programs."""
    return {
        "name": comparison.name,
        "recommendation": comparison.recommendation,
        "pareto": [o.name for o in pareto(comparison.options)],
        "options": [
            {**option_json(o), "costPerEpoch": o.cost / comparison.epochs if o.cost is not None else None}
            for o in comparison.options
        ],
        "breakEven": comparison.buying.summary if comparison.buying else None,
        "assumptions": comparison.assumptions,
    }
