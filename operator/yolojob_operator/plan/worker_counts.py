"""How many workers an attempt may have. Pure."""

from __future__ import annotations

from yolojob.api.spec import YoloTrainingJobSpec


def sizes(spec: YoloTrainingJobSpec) -> list[int]:
    """Numbers of workers that a job can run with, from small to large.

    The global batch is the same for all of them, so it must be a multiple of the processes.
    """
    if spec.elastic is None:
        return [spec.workers.replicas]
    most = min(spec.workers.replicas, spec.elastic.max_replicas)
    candidates = range(spec.elastic.min_replicas, most + 1)
    return [n for n in candidates if spec.train.batch % (n * spec.workers.processes) == 0]


def at_most(spec: YoloTrainingJobSpec, workers: int) -> int | None:
    """The largest size of no more than so many workers; none where the job needs more."""
    return max((n for n in sizes(spec) if n <= workers), default=None)


def closest(spec: YoloTrainingJobSpec, workers: int) -> int:
    """The size nearest to so many workers, from below where there is one; a job that is not elastic has only one."""
    return at_most(spec, workers) or min(sizes(spec), default=spec.workers.replicas)


def next_above(spec: YoloTrainingJobSpec, workers: int) -> int | None:
    """The next larger size."""
    return min((n for n in sizes(spec) if n > workers), default=None)
