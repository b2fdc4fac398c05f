"""A comparison of places: what stands on its page and in its picture."""

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
    """Places, worked out and judged."""

    name: str
    epochs: int
    options: list[Option]
    recommendation: str
    assumptions: list[str]
    buying: BreakEven | None
    curve: list[run_files.Epoch]
    """Of a finished run of this job, where there is one."""


def build_comparison(job: YoloTrainingJob, survey: Estimator, options: list[Option], curve: Path | None) -> Comparison:
    """Judge.

    Raises:
        NoRun: there is no such finished run.
    """
    options = sorted(options, key=lambda o: o.seconds)
    said = survey.assumed.model_dump(by_alias=True, exclude_none=True)
    epochs = run_files.epochs(curve) if curve else []
    return Comparison(
        name=job.metadata.name,
        epochs=job.spec.train.epochs,
        options=options,
        recommendation=recommend(options, survey.assumed),
        assumptions=[f"{key} = {value}" for key, value in said.items()],
        buying=break_even(options, survey.assumed),
        curve=[e for e in epochs if e.map is not None],
    )


def to_json(found: Comparison) -> dict[str, Any]:
    """For programs."""
    return {
        "name": found.name,
        "recommendation": found.recommendation,
        "pareto": [o.name for o in pareto(found.options)],
        "options": [
            {**option_json(o), "costPerEpoch": o.cost / found.epochs if o.cost is not None else None}
            for o in found.options
        ],
        "breakEven": found.buying.words if found.buying else None,
        "assumptions": found.assumptions,
    }
