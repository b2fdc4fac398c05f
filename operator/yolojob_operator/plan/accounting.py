"""Where the time and the money went: the account in `status.timing`, `status.cost` and `status.history`. Pure.

Time is booked from the last entry to now, in whole seconds, as the API server writes them; so the parts of a job add up to
its wall clock. The past is cut at what the pods' own clocks say (scheduled, started); what lies within a worker's running
time is split by the trainer's report.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from yolojob.api.job import YoloTrainingJob
from yolojob.api.reasons import Reason
from yolojob.api.status import Attempt, ConditionType, Cost, Timing, YoloTrainingJobStatus
from yolojob.api.trainer_report import Report
from yolojob.catalogue.prices import NoPrice, price_of
from yolojob_operator.plan.conditions import find, is_finished, is_set
from yolojob_operator.plan.node_facts import NodeFacts
from yolojob_operator.plan.pod_facts import PodFacts

KEPT = 10
"""Attempts in status.history; of older ones the sums remain."""
DIGITS = 6
"""Of a currency's unit: a second of the cheapest machine is some 10 of the last."""
STALE = timedelta(seconds=60)
"""The account is written at least so often while time passes; sooner only with other news."""
STALE_PARTING = timedelta(seconds=10)
"""The same for pods that are about to go."""
TRAINERS = (
    "rendezvous_seconds",
    "staging_seconds",
    "startup_seconds",
    "validation_seconds",
    "checkpoint_seconds",
    "all_reduce_with_overlap_seconds",
)
"""What a trainer knows of `status.timing`, besides the phases of its steps; the rest is ours."""
MOST_PHASES = 32
"""Of a training step, in the status."""


def current(status: YoloTrainingJobStatus) -> Attempt | None:
    """The record of the current attempt, once its size is decided."""
    last = status.history[-1] if status.history else None
    return last if last is not None and last.attempt == status.attempt else None


def book(job: YoloTrainingJob, status: YoloTrainingJobStatus, pods: Iterable[PodFacts], now: datetime) -> None:
    """Enter what has passed since the last entry. `status` still tells how the job stood in that time."""
    now = now.replace(microsecond=0)
    timing = status.timing or Timing()
    since = timing.updated_at or job.metadata.creation_timestamp or now
    pods = list(pods)
    if now > since:
        if not is_finished(status):
            _book_time(status, timing, pods, since, now)
        _book_pods(status, pods, since, now)
    timing.updated_at = max(now, since)
    status.timing = timing


def _book_time(
    status: YoloTrainingJobStatus, timing: Timing, pods: list[PodFacts], since: datetime, now: datetime
) -> None:
    record = current(status)
    if is_set(status, ConditionType.SUSPENDED, "True"):
        _add(timing, "suspended_seconds", since, now)
        return
    asked = record.start_time if record is not None and record.start_time else now
    _add(timing, "queued_seconds" if status.attempt <= 1 else "restart_seconds", since, min(asked, now))
    since = max(since, asked)
    rank0_ran = is_set(status, ConditionType.RUNNING, "True")
    if rank0_ran and not any(p.index == 0 and p.started and p.attempt == status.attempt for p in pods):
        _add(timing, "running_seconds", since, now)  # its pod is gone, and with it the word of when it ended
    elif record is not None and since < now:
        own = [p for p in pods if p.attempt == record.attempt and p.index < record.workers]
        rank0_pod = next((p for p in own if p.index == 0), None)
        started = rank0_pod.started if rank0_pod and rank0_pod.started else now
        placed = [p.scheduled for p in own if p.scheduled]
        scheduled = min(max(placed), started) if len(placed) == record.workers else started
        waits = find(status, ConditionType.SCHEDULED)
        gated = waits is not None and waits.reason == Reason.GATED
        _add(timing, "queued_seconds" if gated else "scheduling_seconds", since, min(scheduled, now))
        _add(timing, "image_pull_seconds", max(since, scheduled), min(started, now))
        ended = max(rank0_pod.finished, started) if rank0_pod and rank0_pod.finished else now
        _add(timing, "running_seconds", max(since, started), min(ended, now))
        _add(timing, "shutdown_seconds", max(since, ended), now)


def _add(timing: Timing, part: str, since: datetime, until: datetime) -> None:
    """Add this time; less than a second is 0, and not unknown."""
    seconds = max((until - since).total_seconds(), 0.0)
    setattr(timing, part, (getattr(timing, part) or 0.0) + seconds)


def _book_pods(status: YoloTrainingJobStatus, pods: list[PodFacts], since: datetime, now: datetime) -> None:
    """Running time of every pod, also of those that are about to go."""
    records = {r.attempt: r for r in status.history}
    for pod in pods:
        record = records.get(pod.attempt)
        if record is not None and pod.started is not None:
            ran = (min(pod.finished or now, now) - max(pod.started, since)).total_seconds()
            record.pod_seconds += max(ran, 0.0)


def open_record(status: YoloTrainingJobStatus, workers: int, device: str) -> None:
    """Begin the record of the current attempt."""
    earlier = (status.timing.running_seconds or 0.0) if status.timing else 0.0
    record = Attempt(attempt=status.attempt, workers=workers, device=device, running_seconds_before=earlier)  # type: ignore[arg-type]
    status.history = [*status.history, record][-KEPT:]


def close_record(status: YoloTrainingJobStatus, reason: str, message: str, now: datetime) -> None:
    """End the record of the current attempt."""
    record = current(status)
    if record is not None and record.end_time is None:
        record.end_time, record.reason, record.message = now, reason, message[:1024]


def take_over(status: YoloTrainingJobStatus, report: Report) -> None:
    """Split the running time as the trainer of the current attempt says."""
    timing, record = status.timing or Timing(), current(status)
    if report.timing == Timing() or record is None:  # it has not begun
        return
    said = {name: value for name in TRAINERS if (value := getattr(report.timing, name)) is not None}
    # Also when it is empty: what an earlier attempt has trained is carried over by a checkpoint, or lost.
    said["training_seconds"] = dict(itertools.islice(report.timing.training_seconds.items(), MOST_PHASES))
    status.timing = timing.model_copy(update=said)
    status.timing.lost_seconds = max(record.running_seconds_before - report.carried_seconds, 0.0)
    # A checkpoint may carry more than this job has run: what a worker trained on its way out, which is booked as restart or
    # suspension, or what another job trained on the same storage.
    surplus, told = report.carried_seconds - record.running_seconds_before, status.timing.trained_seconds
    if surplus > 0 and told > 0:
        _scale(status.timing, max(told - surplus, 0.0) / told)


def _scale(timing: Timing, factor: float) -> None:
    """Shorten all that the trainer has told."""
    for name in TRAINERS:
        if (value := getattr(timing, name)) is not None:
            setattr(timing, name, round(value * factor, 3))
    timing.training_seconds = {phase: round(value * factor, 3) for phase, value in timing.training_seconds.items()}


def balance(status: YoloTrainingJobStatus) -> None:
    """What no trainer has accounted for."""
    timing = status.timing
    if timing is not None and timing.running_seconds is not None:
        rest = timing.running_seconds - timing.trained_seconds - (timing.lost_seconds or 0.0)
        timing.unaccounted_seconds = round(max(rest, 0.0), 3)


def fix_price(
    job: YoloTrainingJob, status: YoloTrainingJobStatus, pods: list[PodFacts], nodes: Mapping[str, NodeFacts]
) -> None:
    """Fix the price of the current attempt, once; the machines are known when all its pods have a node."""
    record = current(status)
    if record is None or record.per_worker_hour is not None or not pods:
        return
    machines = [nodes.get(pod.node) for pod in pods]
    try:
        prices = [price_of(job.spec, n.machine if n else "", spot=n.spot if n else False) for n in machines]
    except NoPrice as none:
        status.cost = _cost(status, str(none))
        return
    billed = status.cost.currency if status.cost else None
    if billed is not None and billed != prices[0].currency:
        words = f"no price: attempts before this one are billed in {billed}, and this one's is in {prices[0].currency}"
        status.cost = _cost(status, words)
        return
    record.per_worker_hour = sum(p.per_worker_hour for p in prices) / len(prices)
    record.currency = prices[0].currency
    status.cost = _cost(status, prices[0].words)


def _cost(status: YoloTrainingJobStatus, source: str) -> Cost:
    return (status.cost or Cost()).model_copy(update={"price_source": source})


def charge(job: YoloTrainingJob, status: YoloTrainingJobStatus, before: YoloTrainingJobStatus, now: datetime) -> None:
    """Turn the pods' running time into money, where there is a price.

    Args:
        job: whose money it is.
        status: with the pods' time of now.
        before: with the pods' time that has been charged already.
        now: the moment.
    """
    charged = {r.attempt: r.cost or 0.0 for r in before.history}
    added, currency = 0.0, None
    for record in status.history:
        if record.per_worker_hour is not None:
            record.cost = round(record.pod_seconds * record.per_worker_hour / 3600, DIGITS)
            added += record.cost - charged.get(record.attempt, 0.0)
            currency = record.currency
    if currency is None or status.cost is None:
        return
    cost, newest = status.cost, current(status)
    cost.currency, cost.budget = currency, job.spec.pricing.budget
    cost.so_far = round(max((cost.so_far or 0.0) + added, 0.0), DIGITS)
    timing = status.timing or Timing()
    if newest is not None and newest.per_worker_hour is not None:
        cost.per_hour = round(newest.per_worker_hour * newest.workers, DIGITS)
        cost.lost = round(cost.per_hour * (timing.lost_seconds or 0.0) / 3600, DIGITS)
        eta = status.progress.eta if status.progress else None
        left = max((eta - now).total_seconds(), 0.0) if eta else None
        cost.estimated_total = round(cost.so_far + cost.per_hour * left / 3600, DIGITS) if left is not None else None
    if is_finished(status):
        cost.estimated_total = cost.so_far


def is_stale(written: YoloTrainingJobStatus, now: datetime) -> bool:
    """Whether the written account is too old to be left alone."""
    rests = is_finished(written) or is_set(written, ConditionType.SUSPENDED, "True")
    if rests or written.timing is None or written.timing.updated_at is None:
        return False
    return now - written.timing.updated_at >= STALE


def pays_parting(
    before: YoloTrainingJobStatus, status: YoloTrainingJobStatus, pods: Iterable[PodFacts], now: datetime
) -> tuple[bool, datetime | None]:
    """(whether the pods' time is to be written now, when at the latest it will be) of pods that are about to go.

    Who ends takes the word of when he did with him, so that is news at once. Who is still there may vanish without a word,
    with his node: then he was paid until he was last written down.
    """
    parting = [p for p in pods if p.started and (p.deleted or p.attempt != status.attempt)]
    paid = {r.attempt: r.pod_seconds for r in before.history}
    ended = {p.attempt for p in parting if p.terminal}
    if any(r.pod_seconds != paid.get(r.attempt) for r in status.history if r.attempt in ended):
        return True, None
    if all(p.terminal for p in parting):
        return False, None
    written = before.timing.updated_at if before.timing else None
    if written is None or now >= written + STALE_PARTING:
        return True, now + STALE_PARTING
    return False, written + STALE_PARTING
