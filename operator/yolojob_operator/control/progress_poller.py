"""What the trainers say: rank 0 of every running job is asked now and then."""

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
"""Between two questions to a job; longer with many jobs, so that status writes stay bounded."""
MAX_POLLS_PER_SECOND = 20
MAX_POLL_INTERVAL_SECONDS = 30.0
"""The same, where it does not answer and each question is a request to the API server."""
FIRST_POLL_DELAY_SECONDS = 5.0
"""So long after its start a trainer imports torch, and nobody answers."""
FIRST_PROXY_POLL_DELAY_SECONDS = 15.0
"""The same where each question is a request to the API server: few are asked in vain."""
MAX_SILENT_POLLS_PER_SECOND = 2
"""Questions there to pods that have not answered yet, of all jobs together."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The newest of a pod."""

    uid: str
    report: Report | None = None
    silences: int = 0
    """Questions in a row that were not answered."""
    next_time: float = 0.0
    """Not before this moment is it asked again."""


class ProgressPoller:
    """The newest report of every job."""

    def __init__(self, cluster: ApiClient, news: Callable[[Key], None], knows: Callable[[Key], bool]) -> None:
        """
        Args:
            cluster: the way to the pods.
            news: told of a job with a new report.
            knows: whether there is such a job.
        """
        self._api, self._news, self._knows = cluster, news, knows
        self._answers: dict[Key, Answer] = {}
        self._next_silent = 0.0
        """Not before this moment is another silent pod asked from outside."""

    def of(self, key: Key, gang: Iterable[PodFacts]) -> Report | None:
        """What a pod of this gang said last."""
        answer = self._answers.get(key)
        return answer.report if answer and any(p.uid == answer.uid for p in gang) else None

    def forget(self, key: Key) -> None:
        self._answers.pop(key, None)

    async def watch(
        self, rank0_pods: Callable[[], list[tuple[Key, PodFacts]]], turn: Callable[[], Awaitable[None]]
    ) -> None:
        """Ask for ever.

        Args:
            rank0_pods: the jobs that run, each with the pod of its rank 0.
            turn: returns when it is on us to ask.
        """
        while True:
            await turn()
            began = time.monotonic()
            questions = []
            for key, rank0_pod in rank0_pods():
                questions.append(asyncio.create_task(self._ask(key, rank0_pod)))
                await asyncio.sleep(1 / MAX_POLLS_PER_SECOND)
            await asyncio.gather(*questions)
            await asyncio.sleep(max(POLL_INTERVAL_SECONDS - (time.monotonic() - began), 0.1))

    async def _ask(self, key: Key, rank0_pod: PodFacts) -> None:
        if not self._knows(key):
            return  # it was deleted since this round began
        known = self._answers.get(key)
        if known is None or known.uid != rank0_pod.uid:
            known = self._answers[key] = Answer(rank0_pod.uid, next_time=self._first_time(rank0_pod))
        if time.monotonic() < known.next_time or not self._may_ask(known):
            return
        report = await self._api.progress(key[0], rank0_pod.name, rank0_pod.ip)
        if self._answers.get(key) is not known:
            return  # the job was deleted meanwhile
        if report is not None:
            self._answers[key] = Answer(rank0_pod.uid, report)
            self._news(key)
            return
        wait = 0.0 if self._api.inside else min(POLL_INTERVAL_SECONDS * 2**known.silences, MAX_POLL_INTERVAL_SECONDS)
        self._answers[key] = Answer(rank0_pod.uid, known.report, known.silences + 1, time.monotonic() + wait)

    def _may_ask(self, known: Answer) -> bool:
        """Whether it is the turn of one that may be silent."""
        if self._api.inside or known.report is not None:
            return True
        now = time.monotonic()
        if now < self._next_silent:
            return False
        self._next_silent = now + 1 / MAX_SILENT_POLLS_PER_SECOND
        return True

    def _first_time(self, rank0_pod: PodFacts) -> float:
        """When to ask a pod first, on the monotonic clock."""
        age = (datetime.now(UTC) - rank0_pod.started).total_seconds() if rank0_pod.started else 0.0
        start = FIRST_POLL_DELAY_SECONDS if self._api.inside else FIRST_PROXY_POLL_DELAY_SECONDS
        return time.monotonic() + max(start - age, 0.0)
