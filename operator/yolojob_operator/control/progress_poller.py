"""What the trainers say: rank 0 of every running job is asked now and then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from yolojob.api.trainer_report import Report
from yolojob_operator.kube.api_client import Cluster
from yolojob_operator.plan.pod_facts import Key, PodFacts

EVERY_SECONDS = 2.0
"""Between two questions to a job; longer with many jobs, so that status writes stay bounded."""
JOBS_PER_SECOND = 20
MOST_SECONDS = 30.0
"""The same, where it does not answer and each question is a request to the API server."""
START_SECONDS = 5.0
"""So long after its start a trainer imports torch, and nobody answers."""
START_OUTSIDE_SECONDS = 15.0
"""The same where each question is a request to the API server: few are asked in vain."""
SILENT_PER_SECOND = 2
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


class Reports:
    """The newest report of every job."""

    def __init__(self, cluster: Cluster, news: Callable[[Key], None], knows: Callable[[Key], bool]) -> None:
        """
        Args:
            cluster: the way to the pods.
            news: told of a job with a new report.
            knows: whether there is such a job.
        """
        self._cluster, self._news, self._knows = cluster, news, knows
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
        self, chiefs: Callable[[], list[tuple[Key, PodFacts]]], turn: Callable[[], Awaitable[None]]
    ) -> None:
        """Ask for ever.

        Args:
            chiefs: the jobs that run, each with the pod of its rank 0.
            turn: returns when it is on us to ask.
        """
        while True:
            await turn()
            began = time.monotonic()
            questions = []
            for key, chief in chiefs():
                questions.append(asyncio.create_task(self._ask(key, chief)))
                await asyncio.sleep(1 / JOBS_PER_SECOND)
            await asyncio.gather(*questions)
            await asyncio.sleep(max(EVERY_SECONDS - (time.monotonic() - began), 0.1))

    async def _ask(self, key: Key, chief: PodFacts) -> None:
        if not self._knows(key):
            return  # it was deleted since this round began
        known = self._answers.get(key)
        if known is None or known.uid != chief.uid:
            known = self._answers[key] = Answer(chief.uid, next_time=self._first_time(chief))
        if time.monotonic() < known.next_time or not self._may_ask(known):
            return
        report = await self._cluster.progress(key[0], chief)
        if self._answers.get(key) is not known:
            return  # the job was deleted meanwhile
        if report is not None:
            self._answers[key] = Answer(chief.uid, report)
            self._news(key)
            return
        wait = 0.0 if self._cluster.inside else min(EVERY_SECONDS * 2**known.silences, MOST_SECONDS)
        self._answers[key] = Answer(chief.uid, known.report, known.silences + 1, time.monotonic() + wait)

    def _may_ask(self, known: Answer) -> bool:
        """Whether it is the turn of one that may be silent."""
        if self._cluster.inside or known.report is not None:
            return True
        now = time.monotonic()
        if now < self._next_silent:
            return False
        self._next_silent = now + 1 / SILENT_PER_SECOND
        return True

    def _first_time(self, chief: PodFacts) -> float:
        """When to ask a pod first, on the monotonic clock."""
        age = (datetime.now(UTC) - chief.started).total_seconds() if chief.started else 0.0
        start = START_SECONDS if self._cluster.inside else START_OUTSIDE_SECONDS
        return time.monotonic() + max(start - age, 0.0)
