"""Keeps the account of time and money in `status.timing`, `status.cost` and `status.history`. Pure.

Time is booked from the last entry to now, in whole seconds, as the API server writes timestamps; so the parts of a job
add up to its wall-clock time. Past time is divided at the timestamps of the pods (scheduled, started). The running time
of worker 0 is divided by the trainer's report.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from yolojob.api.job import YoloTrainingJob
from yolojob.api.reasons import Reason
from yolojob.api.status import Attempt, ConditionType, Cost, Timing, YoloTrainingJobStatus
from yolojob.api.time_parts import TimeGroup, TimePart, in_group
from yolojob.api.trainer_report import Report
from yolojob.catalogue.prices import NoPrice, price_of
from yolojob_operator.plan.conditions import find, is_finished, is_set
from yolojob_operator.plan.node_facts import NodeFacts
from yolojob_operator.plan.pod_facts import PodFacts

MAX_HISTORY = 10
"""Attempts in status.history; of older attempts only the sums are kept."""
COST_DIGITS = 6
"""Decimal digits of a currency unit: one second on the cheapest machine costs about 10 units of the last digit."""
MAX_ACCOUNT_AGE = timedelta(seconds=60)
"""The account is written at least this often while time passes, and earlier together with other changes."""
MAX_TERMINATING_AGE = timedelta(seconds=10)
"""The same while pods are terminating."""
MAX_PHASES = 32
"""Phases of a training step in the status."""
MAX_ATTEMPT_MESSAGE_CHARS = 1024
_REPORTED_PARTS = in_group(TimeGroup.START, TimeGroup.EVALUATION)
"""Parts that the trainer measures, besides the phases of its steps. The operator measures the other parts."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """The result of settling an account."""

    status: YoloTrainingJobStatus
    """To be written. If nothing but time has passed, it is the written status, until the account is too old."""
    due: datetime | None
    """When the account must be settled again at the latest, because pods are terminating."""


@dataclass(frozen=True, slots=True)
class _Milestones:
    """When the pods of the current attempt passed each stage; now for stages that are still ahead."""

    scheduled: datetime
    """All pods have a node."""
    started: datetime
    """The trainer container of worker 0 started."""
    ended: datetime
    """The trainer container of worker 0 ended."""


class Account:
    """The account of one job during one plan. It changes `status` in place."""

    def __init__(
        self,
        job: YoloTrainingJob,
        status: YoloTrainingJobStatus,
        pods: Iterable[PodFacts],
        nodes: Mapping[str, NodeFacts] | None,
        now: datetime,
    ) -> None:
        """
        Args:
            job: the job, with the written status.
            status: the status that the plan is preparing.
            pods: the job's pods.
            nodes: nodes by name; None if the operator may not list nodes.
            now: the time of the plan.
        """
        self._job, self._status, self._now = job, status, now
        self._pods, self._nodes = tuple(pods), nodes or {}
        self._written = job.status or YoloTrainingJobStatus()

    @property
    def record(self) -> Attempt | None:
        """The record of the current attempt, once its size is decided."""
        history = self._status.history
        last = history[-1] if history else None
        return last if last is not None and last.attempt == self._status.attempt else None

    # --- the four entry points, in the order of a plan --------------------------------------------------------------

    def book(self) -> None:
        """Book the time since the last entry. `status` still describes the job as it was during that time."""
        now = self._now.replace(microsecond=0)
        timing = self._status.timing or Timing()
        since = timing.updated_at or self._job.metadata.creation_timestamp or now
        if now > since:
            if not is_finished(self._status):
                self._book_time(timing, since, now)
            self._book_pods(since, now)
        timing.updated_at = max(now, since)
        self._status.timing = timing

    def open_attempt(self, workers: int, device: Literal["GPU", "CPU"]) -> None:
        """Start the record of the current attempt."""
        timing = self._status.timing
        running_before = (timing.running_seconds or 0.0) if timing else 0.0
        record = Attempt(
            attempt=self._status.attempt, workers=workers, device=device, running_seconds_before=running_before
        )
        self._status.history = [*self._status.history, record][-MAX_HISTORY:]

    def close_attempt(self, reason: str, message: str) -> None:
        """Fix the price of the current attempt and end its record."""
        self._fix_price()
        record = self.record
        if record is not None and record.end_time is None:
            record.end_time, record.reason = self._now, reason
            record.message = message[:MAX_ATTEMPT_MESSAGE_CHARS]

    def settle(self) -> Settlement:
        """Balance the time, charge the pods, and decide whether the account has to be written."""
        record = self.record
        if record is not None and (is_finished(self._status) or len(self._placed(record)) == record.workers):
            self._fix_price()
        self._balance()
        self._charge()
        charge_now, due = self._terminating_pods_to_charge()
        # Passing time alone is not a reason to write: the account waits for another change, or until it is too old.
        only_time = _without_account(self._status) == _without_account(self._written)
        keep = only_time and not charge_now and not self._is_too_old()
        return Settlement(self._written if keep else self._status, due)

    # --- time -------------------------------------------------------------------------------------------------------

    def apply_report(self, report: Report) -> None:
        """Divide the running time as the trainer of the current attempt reports it."""
        status, record = self._status, self.record
        if report.timing == Timing() or record is None:  # the trainer has measured nothing yet
            return
        timing = (status.timing or Timing()).model_copy()
        for part in _REPORTED_PARTS:
            if (seconds := _get(report.timing, part)) is not None:
                _set(timing, part, seconds)
        if report.timing.all_reduce_with_overlap_seconds is not None:
            timing.all_reduce_with_overlap_seconds = report.timing.all_reduce_with_overlap_seconds
        # Also if it is empty: a checkpoint carries over the training time of earlier attempts, or it is lost.
        timing.training_seconds = dict(itertools.islice(report.timing.training_seconds.items(), MAX_PHASES))
        timing.lost_seconds = max(record.running_seconds_before - report.carried_seconds, 0.0)
        # A checkpoint may carry more time than this job has run: training during the shutdown of a worker, which is
        # booked as restart or suspension, or training of another job with the same storage.
        surplus, trained = report.carried_seconds - record.running_seconds_before, timing.trained_seconds
        if surplus > 0 and trained > 0:
            _scale(timing, max(trained - surplus, 0.0) / trained)
        status.timing = timing

    def _book_time(self, timing: Timing, since: datetime, now: datetime) -> None:
        status, record = self._status, self.record
        if is_set(status, ConditionType.SUSPENDED, "True"):
            _add(timing, TimePart.SUSPENDED, since, now)
            return
        requested = record.start_time if record is not None and record.start_time else now
        _add(timing, TimePart.QUEUED if status.attempt <= 1 else TimePart.RESTART, since, min(requested, now))
        since = max(since, requested)
        if self._has_lost_rank0():
            _add_running(timing, since, now)  # the time at which the pod ended is lost with the pod
        elif record is not None and since < now:
            reached = self._milestones(record, now)
            condition = find(status, ConditionType.SCHEDULED)
            gated = condition is not None and condition.reason == Reason.GATED
            waiting = TimePart.QUEUED if gated else TimePart.SCHEDULING
            _add(timing, waiting, since, min(reached.scheduled, now))
            _add(timing, TimePart.IMAGE_PULL, max(since, reached.scheduled), min(reached.started, now))
            _add_running(timing, max(since, reached.started), min(reached.ended, now))
            _add(timing, TimePart.SHUTDOWN, max(since, reached.ended), now)

    def _has_lost_rank0(self) -> bool:
        """Whether the attempt ran and the pod of its worker 0 is gone."""
        ran = is_set(self._status, ConditionType.RUNNING, "True")
        return ran and not any(p.index == 0 and p.started and p.attempt == self._status.attempt for p in self._pods)

    def _milestones(self, record: Attempt, now: datetime) -> _Milestones:
        pods = self._gang(record)
        rank0_pod = next((p for p in pods if p.index == 0), None)
        started = rank0_pod.started if rank0_pod and rank0_pod.started else now
        placed = [p.scheduled for p in pods if p.scheduled]
        scheduled = min(max(placed), started) if len(placed) == record.workers else started
        ended = max(rank0_pod.finished, started) if rank0_pod and rank0_pod.finished else now
        return _Milestones(scheduled, started, ended)

    def _gang(self, record: Attempt) -> list[PodFacts]:
        return [p for p in self._pods if p.attempt == record.attempt and p.index < record.workers]

    def _placed(self, record: Attempt) -> list[PodFacts]:
        return [p for p in self._gang(record) if p.node]

    def _book_pods(self, since: datetime, now: datetime) -> None:
        """Book the running time of every pod, terminating pods included."""
        records = {r.attempt: r for r in self._status.history}
        for pod in self._pods:
            record = records.get(pod.attempt)
            if record is not None and pod.started is not None:
                ran = (min(pod.finished or now, now) - max(pod.started, since)).total_seconds()
                record.pod_seconds += max(ran, 0.0)

    def _balance(self) -> None:
        """Book the running time that no trainer has accounted for."""
        timing = self._status.timing
        if timing is not None and timing.running_seconds is not None:
            rest = timing.running_seconds - timing.trained_seconds - (timing.lost_seconds or 0.0)
            timing.unaccounted_seconds = round(max(rest, 0.0), 3)

    # --- money ------------------------------------------------------------------------------------------------------

    def _fix_price(self) -> None:
        """Fix the price of the current attempt, once. The machines are known when all its pods have a node."""
        status, record = self._status, self.record
        if record is None or record.per_worker_hour is not None:
            return
        pods = self._placed(record)
        if not pods:
            return
        machines = [self._nodes.get(pod.node) for pod in pods]
        try:
            prices = [price_of(self._job.spec, n.machine if n else "", spot=n.spot if n else False) for n in machines]
        except NoPrice as error:
            self._set_price_source(str(error))
            return
        billed, currency = status.cost.currency if status.cost else None, prices[0].currency
        if billed is not None and billed != currency:
            self._set_price_source(
                f"no price: earlier attempts are billed in {billed}, and the price of this attempt is in {currency}"
            )
            return
        record.per_worker_hour = sum(p.per_worker_hour for p in prices) / len(prices)
        record.currency = currency
        self._set_price_source(prices[0].source)

    def _set_price_source(self, source: str) -> None:
        self._status.cost = (self._status.cost or Cost()).model_copy(update={"price_source": source})

    def _charge(self) -> None:
        """Charge the pods' running time since the written status, where a price is known."""
        status = self._status
        charged = {r.attempt: r.cost or 0.0 for r in self._written.history}
        added, currency = 0.0, None
        for record in status.history:
            if record.per_worker_hour is not None:
                record.cost = round(record.pod_seconds * record.per_worker_hour / 3600, COST_DIGITS)
                added += record.cost - charged.get(record.attempt, 0.0)
                currency = record.currency
        if currency is None or status.cost is None:
            return
        cost = status.cost
        cost.currency, cost.budget = currency, self._job.spec.pricing.budget
        cost.so_far = round(max((cost.so_far or 0.0) + added, 0.0), COST_DIGITS)
        self._project(cost, cost.so_far)
        if is_finished(status):
            cost.estimated_total = cost.so_far

    def _project(self, cost: Cost, so_far: float) -> None:
        """Fill in the cost per hour, the lost cost, and the estimated total of the current attempt."""
        status, record = self._status, self.record
        if record is None or record.per_worker_hour is None:
            return
        timing = status.timing or Timing()
        cost.per_hour = round(record.per_worker_hour * record.workers, COST_DIGITS)
        cost.lost = round(cost.per_hour * (timing.lost_seconds or 0.0) / 3600, COST_DIGITS)
        eta = status.progress.eta if status.progress else None
        if eta is None:
            cost.estimated_total = None
            return
        seconds_left = max((eta - self._now).total_seconds(), 0.0)
        cost.estimated_total = round(so_far + cost.per_hour * seconds_left / 3600, COST_DIGITS)

    # --- when it is written -----------------------------------------------------------------------------------------

    def _is_too_old(self) -> bool:
        """Whether the written account is older than MAX_ACCOUNT_AGE while the job's time passes."""
        written = self._written
        idle = is_finished(written) or is_set(written, ConditionType.SUSPENDED, "True")
        if idle or written.timing is None or written.timing.updated_at is None:
            return False
        return self._now - written.timing.updated_at >= MAX_ACCOUNT_AGE

    def _terminating_pods_to_charge(self) -> tuple[bool, datetime | None]:
        """(whether the time of terminating pods must be written now, when it must be written at the latest).

        A terminated pod's end time disappears with the pod, so it is recorded immediately. A running pod may vanish
        with its node; it is then charged up to the last recorded time.
        """
        status, written = self._status, self._written
        terminating = [p for p in self._pods if p.started and (p.deleted or p.attempt != status.attempt)]
        recorded = {r.attempt: r.pod_seconds for r in written.history}
        ended = {p.attempt for p in terminating if p.terminal}
        if any(r.pod_seconds != recorded.get(r.attempt) for r in status.history if r.attempt in ended):
            return True, None
        if all(p.terminal for p in terminating):
            return False, None
        updated_at = written.timing.updated_at if written.timing else None
        if updated_at is None or self._now >= updated_at + MAX_TERMINATING_AGE:
            return True, self._now + MAX_TERMINATING_AGE
        return False, updated_at + MAX_TERMINATING_AGE


def _without_account(status: YoloTrainingJobStatus) -> YoloTrainingJobStatus:
    history = [r.model_copy(update={"pod_seconds": 0.0, "cost": None}) for r in status.history]
    return status.model_copy(update={"timing": None, "cost": None, "history": history})


def _get(timing: Timing, part: TimePart) -> float | None:
    seconds: float | None = getattr(timing, f"{part.value}_seconds")
    return seconds


def _set(timing: Timing, part: TimePart, seconds: float) -> None:
    setattr(timing, f"{part.value}_seconds", seconds)


def _add(timing: Timing, part: TimePart, since: datetime, until: datetime) -> None:
    """Add the time between two moments. A part that took less than a second becomes 0, not unknown."""
    _set(timing, part, (_get(timing, part) or 0.0) + _seconds(since, until))


def _add_running(timing: Timing, since: datetime, until: datetime) -> None:
    timing.running_seconds = (timing.running_seconds or 0.0) + _seconds(since, until)


def _seconds(since: datetime, until: datetime) -> float:
    return max((until - since).total_seconds(), 0.0)


def _scale(timing: Timing, factor: float) -> None:
    """Multiply everything that the trainer has reported."""
    for part in _REPORTED_PARTS:
        if (seconds := _get(timing, part)) is not None:
            _set(timing, part, round(seconds * factor, 3))
    if timing.all_reduce_with_overlap_seconds is not None:
        timing.all_reduce_with_overlap_seconds = round(timing.all_reduce_with_overlap_seconds * factor, 3)
    timing.training_seconds = {phase: round(value * factor, 3) for phase, value in timing.training_seconds.items()}
