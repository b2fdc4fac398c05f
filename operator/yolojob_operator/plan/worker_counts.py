"""Computes which numbers of workers an attempt may have. Pure."""

from __future__ import annotations

from yolojob.api.spec import YoloTrainingJobSpec


def allowed(spec: YoloTrainingJobSpec) -> list[int]:
    """The numbers of workers that a job can run with, in ascending order.

    The global batch is the same for all of them, so it must be a multiple of the number of processes.
    """
    if spec.elastic is None:
        return [spec.workers.replicas]
    largest = min(spec.workers.replicas, spec.elastic.max_replicas)
    candidates = range(spec.elastic.min_replicas, largest + 1)
    return [n for n in candidates if spec.train.batch % (n * spec.workers.processes) == 0]


def at_most(spec: YoloTrainingJobSpec, workers: int) -> int | None:
    """The largest allowed number up to `workers`; None if the job needs more."""
    return max((n for n in allowed(spec) if n <= workers), default=None)


def closest(spec: YoloTrainingJobSpec, workers: int) -> int:
    """The largest allowed number up to `workers`, else the smallest allowed number; replicas for a job that is not
    elastic.
    """
    return at_most(spec, workers) or min(allowed(spec), default=spec.workers.replicas)
