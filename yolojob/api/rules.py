"""Rules that one field cannot tell by itself, each said twice: in CEL for the API server, in Python for everyone else.

A cluster test feeds both with the same manifests and wants the same verdict.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from yolojob.api.constants import MAX_NAME_LENGTH
from yolojob.api.job import YoloTrainingJob
from yolojob.api.spec import YoloTrainingJobSpec

NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
NAME_MESSAGE = (
    f"must be a DNS label of at most {MAX_NAME_LENGTH} characters: lower-case letters, digits and '-', beginning with a "
    "letter, because the pods' host names are made of it"
)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A rule over the whole spec."""

    field: str
    """Path below spec of the field to blame."""
    message: str
    cel: str
    holds: Callable[[YoloTrainingJobSpec], bool]
    value: Callable[[YoloTrainingJobSpec], object]
    """The offending value, for the message."""


_PROCESSES = (
    "(type(self.workers.processesPerWorker) == int ? int(self.workers.processesPerWorker) : "
    "(has(self.workers.gpu) ? self.workers.gpu.count : 1))"
)

RULES = (
    Rule(
        field="train.batch",
        message="the global batch must be a multiple of the worker processes (spec.workers.replicas × processes per "
        "worker), so that all get the same number of images; change one of the two",
        cel=f"self.train.batch % (self.workers.replicas * {_PROCESSES}) == 0",
        holds=lambda s: s.train.batch % s.workers.world_size == 0,
        value=lambda s: f"{s.train.batch} images for {s.workers.world_size} processes",
    ),
    Rule(
        field="train.fraction",
        message="must be a part of the images (above 0, at most 1) or a whole number of them",
        cel="!has(self.train.fraction) || self.train.fraction <= 1.0 "
        "|| self.train.fraction == double(int(self.train.fraction))",
        holds=lambda s: s.train.fraction is None or s.train.fraction <= 1 or s.train.fraction.is_integer(),
        value=lambda s: s.train.fraction,
    ),
    Rule(
        field="elastic.maxReplicas",
        message="must not be below spec.elastic.minReplicas",
        cel="!has(self.elastic) || self.elastic.minReplicas <= self.elastic.maxReplicas",
        holds=lambda s: s.elastic is None or s.elastic.min_replicas <= s.elastic.max_replicas,
        value=lambda s: s.elastic and s.elastic.max_replicas,
    ),
    Rule(
        field="workers.replicas",
        message="must lie between spec.elastic.minReplicas and spec.elastic.maxReplicas",
        cel="!has(self.elastic) || (self.workers.replicas >= self.elastic.minReplicas "
        "&& self.workers.replicas <= self.elastic.maxReplicas)",
        holds=lambda s: s.elastic is None or s.elastic.min_replicas <= s.workers.replicas <= s.elastic.max_replicas,
        value=lambda s: s.workers.replicas,
    ),
    Rule(
        field="elastic",
        message="does not go with spec.scheduling.gang: kueue, which admits groups of a fixed size; leave one of them out",
        cel="!has(self.elastic) || self.scheduling.gang != 'kueue'",
        holds=lambda s: s.elastic is None or s.scheduling.gang != "kueue",
        value=lambda s: s.scheduling.gang,
    ),
    Rule(
        field="scheduling.queue",
        message="needs spec.scheduling.gang: kueue or volcano, which have queues",
        cel="self.scheduling.queue == '' || self.scheduling.gang in ['kueue', 'volcano']",
        holds=lambda s: s.scheduling.queue == "" or s.scheduling.gang in ("kueue", "volcano"),
        value=lambda s: s.scheduling.queue,
    ),
    Rule(
        field="pricing.perWorkerHour",
        message="cannot stand beside spec.pricing.machine: give the price or the machine",
        cel="!(has(self.pricing.machine) && has(self.pricing.perWorkerHour))",
        holds=lambda s: s.pricing.machine is None or s.pricing.per_worker_hour is None,
        value=lambda s: s.pricing.per_worker_hour,
    ),
    Rule(
        field="workers.resources",
        message="GPUs are asked for by spec.workers.gpu, not by resources",
        cel="!self.workers.resources.requests.exists(k, k.endsWith('/gpu')) "
        "&& !self.workers.resources.limits.exists(k, k.endsWith('/gpu'))",
        holds=lambda s: (
            not any(k.endswith("/gpu") for k in (*s.workers.resources.requests, *s.workers.resources.limits))
        ),
        value=lambda s: {**s.workers.resources.requests, **s.workers.resources.limits},
    ),
)

FIXED = ("model", "dataset", "train", "storage")
"""Parts of the spec that are what the job is: they never change. Only the API server can tell."""

TRANSITIONS = (
    (
        "workers.replicas",
        "self.workers.replicas == oldSelf.workers.replicas || has(self.elastic) "
        "|| (self.runPolicy.suspend && oldSelf.runPolicy.suspend)",
        "can be changed only with spec.elastic, or while the job is suspended",
    ),
    (
        "scheduling.queue",
        "self.scheduling.queue == oldSelf.scheduling.queue || (self.runPolicy.suspend && oldSelf.runPolicy.suspend)",
        "can be changed only while the job is suspended: its pods stand in the queue that they were made for",
    ),
    (
        "scheduling.gang",
        "self.scheduling.gang == oldSelf.scheduling.gang || (self.runPolicy.suspend && oldSelf.runPolicy.suspend)",
        "can be changed only while the job is suspended",
    ),
    (
        "storage",
        "has(self.storage) == has(oldSelf.storage)",
        "cannot be added or removed: it is part of what the job is; create another job",
    ),
    (
        "pricing.currency",
        "self.pricing.currency == oldSelf.pricing.currency",
        "cannot be changed: costs in different currencies do not add up",
    ),
    (
        "runPolicy.managedBy",
        "has(self.runPolicy.managedBy) ? has(oldSelf.runPolicy.managedBy) "
        "&& self.runPolicy.managedBy == oldSelf.runPolicy.managedBy : !has(oldSelf.runPolicy.managedBy)",
        "cannot be changed",
    ),
)
"""Other rules for updates: (field below spec, CEL, message)."""


def violations(job: YoloTrainingJob) -> Iterator[tuple[str, object, str]]:
    """(path, value, message) for every rule that a well-formed job breaks."""
    name = job.metadata.name
    if not re.fullmatch(NAME_PATTERN, name) or len(name) > MAX_NAME_LENGTH:
        yield "metadata.name", name, NAME_MESSAGE
    for rule in RULES:
        if not rule.holds(job.spec):
            yield f"spec.{rule.field}", rule.value(job.spec), rule.message
