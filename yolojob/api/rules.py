"""Defines the rules between fields, each in CEL for the API server and in Python for other programs.

A cluster test checks that both give the same verdict on the same manifests.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from yolojob.api.constants import MAX_NAME_LENGTH
from yolojob.api.job import YoloTrainingJob
from yolojob.api.spec import OFFICIAL_WEIGHTS, WEIGHTS_SUFFIXES, YoloTrainingJobSpec
from yolojob.api.task import NAME_BEGIN, NAME_END, SUFFIXES, tasks_of_name

NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
NAME_MESSAGE = (
    f"must be a DNS label of at most {MAX_NAME_LENGTH} characters: lower-case letters, digits and '-', starting with a "
    "letter, because it is part of the pods' host names"
)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A rule about the whole spec."""

    field: str
    """Path below spec of the field that the message names."""
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
        "worker), so that all processes get the same number of images; change one of the two",
        cel=f"self.train.batch % (self.workers.replicas * {_PROCESSES}) == 0",
        holds=lambda s: s.train.batch % s.workers.world_size == 0,
        value=lambda s: f"{s.train.batch} images for {s.workers.world_size} processes",
    ),
    Rule(
        field="train.fraction",
        message="must be a fraction of the images (above 0, at most 1), or a whole number of images",
        # The schema limits it to 2^53; beyond that, int() would overflow.
        cel="!has(self.train.fraction) || self.train.fraction <= 1.0 || self.train.fraction > 9007199254740991.0 "
        "|| self.train.fraction == double(int(self.train.fraction))",
        holds=lambda s: s.train.fraction is None or s.train.fraction <= 1 or s.train.fraction.is_integer(),
        value=lambda s: s.train.fraction,
    ),
    Rule(
        field="model.weights",
        message="is required with a file of your own in spec.model.name: the folder or the file that holds the "
        "weights. Only official weights such as yolo26n.pt are found by their name; to start without weights, use a "
        ".yaml file",
        cel=f"!self.model.name.matches('[.]({'|'.join(suffix[1:] for suffix in WEIGHTS_SUFFIXES)})$') "
        f"|| has(self.model.weights) || self.model.name.matches('{OFFICIAL_WEIGHTS}')",
        holds=lambda s: (
            not s.model.name.endswith(WEIGHTS_SUFFIXES)
            or s.model.weights is not None
            or re.fullmatch(OFFICIAL_WEIGHTS, s.model.name) is not None
        ),
        value=lambda s: s.model.name,
    ),
    Rule(
        field="task",
        message="contradicts the name of the model, which states the task "
        f"({', '.join(f'{suffix}: {task}' for suffix, task in SUFFIXES.items())}); leave spec.task out, or choose "
        "another model. To start from weights of another task, name an architecture for your task in spec.model.name "
        "and the weights in spec.model.weights",
        cel="!has(self.task) || "
        + " && ".join(
            f"(self.task == '{task}' || !self.model.name.matches('{NAME_BEGIN}{suffix}{NAME_END}$'))"
            for suffix, task in SUFFIXES.items()
        ),
        holds=lambda s: s.task is None or set(tasks_of_name(s.model.name)) <= {s.task},
        value=lambda s: f"{s.task} for {s.model.name}",
    ),
    Rule(
        field="workers.gpu.count",
        message="must be 1 with a slice of a GPU (MIG): CUDA shows one slice to a process; use more workers",
        cel="!has(self.workers.gpu) || !self.workers.gpu.resource.contains('/mig-') || self.workers.gpu.count == 1",
        holds=lambda s: s.workers.gpu is None or "/mig-" not in s.workers.gpu.resource or s.workers.gpu.count == 1,
        value=lambda s: s.workers.gpu and s.workers.gpu.count,
    ),
    Rule(
        field="elastic.maxReplicas",
        message="must not be less than spec.elastic.minReplicas",
        cel="!has(self.elastic) || self.elastic.minReplicas <= self.elastic.maxReplicas",
        holds=lambda s: s.elastic is None or s.elastic.min_replicas <= s.elastic.max_replicas,
        value=lambda s: s.elastic and s.elastic.max_replicas,
    ),
    Rule(
        field="workers.replicas",
        message="must be between spec.elastic.minReplicas and spec.elastic.maxReplicas",
        cel="!has(self.elastic) || (self.workers.replicas >= self.elastic.minReplicas "
        "&& self.workers.replicas <= self.elastic.maxReplicas)",
        holds=lambda s: s.elastic is None or s.elastic.min_replicas <= s.workers.replicas <= s.elastic.max_replicas,
        value=lambda s: s.workers.replicas,
    ),
    Rule(
        field="elastic",
        message="cannot be combined with spec.scheduling.gang: kueue, which admits groups of a fixed size; "
        "remove one of them",
        cel="!has(self.elastic) || self.scheduling.gang != 'kueue'",
        holds=lambda s: s.elastic is None or s.scheduling.gang != "kueue",
        value=lambda s: s.scheduling.gang,
    ),
    Rule(
        field="scheduling.queue",
        message="requires spec.scheduling.gang: kueue or volcano, which have queues",
        cel="self.scheduling.queue == '' || self.scheduling.gang in ['kueue', 'volcano']",
        holds=lambda s: s.scheduling.queue == "" or s.scheduling.gang in ("kueue", "volcano"),
        value=lambda s: s.scheduling.queue,
    ),
    Rule(
        field="pricing.perWorkerHour",
        message="cannot be combined with spec.pricing.machine: set the price or the machine",
        cel="!(has(self.pricing.machine) && has(self.pricing.perWorkerHour))",
        holds=lambda s: s.pricing.machine is None or s.pricing.per_worker_hour is None,
        value=lambda s: s.pricing.per_worker_hour,
    ),
    Rule(
        field="workers.resources",
        message="must not contain GPUs: request them with spec.workers.gpu",
        cel="!self.workers.resources.requests.exists(k, k.endsWith('/gpu')) "
        "&& !self.workers.resources.limits.exists(k, k.endsWith('/gpu'))",
        holds=lambda s: (
            not any(k.endswith("/gpu") for k in (*s.workers.resources.requests, *s.workers.resources.limits))
        ),
        value=lambda s: {**s.workers.resources.requests, **s.workers.resources.limits},
    ),
)

FIXED = ("task", "model", "dataset", "train", "storage")
"""Immutable parts of the spec. Only the API server can check this."""

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
        "can be changed only while the job is suspended: existing pods stay in the queue for which they were created",
    ),
    (
        "scheduling.gang",
        "self.scheduling.gang == oldSelf.scheduling.gang || (self.runPolicy.suspend && oldSelf.runPolicy.suspend)",
        "can be changed only while the job is suspended",
    ),
    (
        "task",
        "has(self.task) == has(oldSelf.task)",
        "cannot be added or removed; create another job",
    ),
    (
        "storage",
        "has(self.storage) == has(oldSelf.storage)",
        "cannot be added or removed; create another job",
    ),
    (
        "pricing.currency",
        "self.pricing.currency == oldSelf.pricing.currency",
        "cannot be changed: costs in different currencies cannot be added",
    ),
    (
        "runPolicy.managedBy",
        "has(self.runPolicy.managedBy) ? has(oldSelf.runPolicy.managedBy) "
        "&& self.runPolicy.managedBy == oldSelf.runPolicy.managedBy : !has(oldSelf.runPolicy.managedBy)",
        "cannot be changed",
    ),
)
"""Further rules for updates: (field below spec, CEL, message)."""


def violations(job: YoloTrainingJob) -> Iterator[tuple[str, object, str]]:
    """(path, value, message) for every rule that a well-formed job violates."""
    name = job.metadata.name
    if not re.fullmatch(NAME_PATTERN, name) or len(name) > MAX_NAME_LENGTH:
        yield "metadata.name", name, NAME_MESSAGE
    for rule in RULES:
        if not rule.holds(job.spec):
            yield f"spec.{rule.field}", rule.value(job.spec), rule.message
