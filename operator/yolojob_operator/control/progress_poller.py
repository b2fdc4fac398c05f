"""Polls the progress reports: asks rank 0 of every running job at intervals."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from yolojob.api.trainer_report import Report
from yolojob_operator.kube.api_client import ApiClient
from yolojob_operator.kube.types import Key
from yolojob_operator.plan.pod_facts import PodFacts

POLL_INTERVAL_SECONDS = 2.0
"""Between two polls of a job; longer with many jobs, so that status writes stay bounded."""
MAX_POLLS_PER_SECOND = 20
"""Of all jobs together."""
MAX_POLL_INTERVAL_SECONDS = 30.0
"""Between two polls of a pod that does not answer, where each poll is a request to the API server."""
FIRST_POLL_DELAY_SECONDS = 5.0
"""After its start a trainer first imports torch, and does not answer for this long."""
FIRST_PROXY_POLL_DELAY_SECONDS = 15.0
"""The same where each poll is a request to the API server: longer, so that few polls fail."""
MAX_SILENT_POLLS_PER_SECOND = 2
"""Polls through the API server to pods that have not answered yet, of all jobs together."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The newest answer of a pod."""

    uid: str
    report: Report | None = None
    unanswered: int = 0
    """Consecutive polls without an answer."""
    next_time: float = 0.0
    """When it may be polled again; monotonic clock."""


class ProgressPoller:
    """The newest report of every job."""

    def __init__(self, api: ApiClient, on_report: Callable[[Key], None], exists: Callable[[Key], bool]) -> None:
        """
        Args:
            api: the API client.
            on_report: called with the key of a job that has a new report.
            exists: whether a job exists.
        """
        self._api, self._on_report, self._exists = api, on_report, exists
        self._answers: dict[Key, Answer] = {}
        self._next_silent_poll = 0.0
        """When the next silent pod may be polled through the API server; monotonic clock."""

    def newest_report(self, key: Key, pods: Iterable[PodFacts]) -> Report | None:
        """The newest report that one of these pods has made."""
        answer = self._answers.get(key)
        return answer.report if answer and any(p.uid == answer.uid for p in pods) else None

    def forget(self, key: Key) -> None:
        self._answers.pop(key, None)

    async def run(
        self,
        rank0_pods: Callable[[], list[tuple[Key, PodFacts]]],
        until_leader: Callable[[], Awaitable[None]],
    ) -> None:
        """Poll in an endless loop.

        Args:
            rank0_pods: the running jobs, each with the pod of its rank 0.
            until_leader: returns once this operator is the leader.
        """
        while True:
            await until_leader()
            began = time.monotonic()
            polls = []
            for key, pod in rank0_pods():
                polls.append(asyncio.create_task(self._poll(key, pod)))
                await asyncio.sleep(1 / MAX_POLLS_PER_SECOND)
            await asyncio.gather(*polls)
            await asyncio.sleep(max(POLL_INTERVAL_SECONDS - (time.monotonic() - began), 0.1))

    async def _poll(self, key: Key, pod: PodFacts) -> None:
        if not self._exists(key):
            return  # it was deleted since this round began
        known = self._answers.get(key)
        if known is None or known.uid != pod.uid:
            known = self._answers[key] = Answer(pod.uid, next_time=self._first_time(pod))
        if time.monotonic() < known.next_time or not self._may_poll(known):
            return
        report = await self._api.progress(key[0], pod.name, pod.ip)
        if self._answers.get(key) is not known:
            return  # the job was deleted in the meantime
        if report is not None:
            self._answers[key] = Answer(pod.uid, report)
            self._on_report(key)
            return
        wait = 0.0 if self._api.inside else min(POLL_INTERVAL_SECONDS * 2**known.unanswered, MAX_POLL_INTERVAL_SECONDS)
        self._answers[key] = Answer(pod.uid, known.report, known.unanswered + 1, time.monotonic() + wait)

    def _may_poll(self, known: Answer) -> bool:
        """Whether the rate limit for silent pods allows this poll."""
        if self._api.inside or known.report is not None:
            return True
        now = time.monotonic()
        if now < self._next_silent_poll:
            return False
        self._next_silent_poll = now + 1 / MAX_SILENT_POLLS_PER_SECOND
        return True

    def _first_time(self, pod: PodFacts) -> float:
        """When to poll a pod for the first time; monotonic clock."""
        age = (datetime.now(UTC) - pod.started).total_seconds() if pod.started else 0.0
        delay = FIRST_POLL_DELAY_SECONDS if self._api.inside else FIRST_PROXY_POLL_DELAY_SECONDS
        return time.monotonic() + max(delay - age, 0.0)
