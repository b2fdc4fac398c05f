"""What the trainers say: rank 0 of every running job is asked now and then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from yolojob.status import Report
from yolojob_operator.cluster import Cluster
from yolojob_operator.facts import Key, PodFacts

EVERY_SECONDS = 2.0
"""Between two questions to a job; longer with many jobs, so that status writes stay bounded."""
JOBS_PER_SECOND = 20
MOST_SECONDS = 30.0
"""The same, where it does not answer and each question is a request to the API server."""
START_SECONDS = 5.0
"""So long after its start a trainer imports torch, and nobody answers."""


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

    def __init__(self, cluster: Cluster, news: Callable[[Key], None]) -> None:
        """
        Args:
            cluster: the way to the pods.
            news: told of a job with a new report.
        """
        self._cluster, self._news = cluster, news
        self._answers: dict[Key, Answer] = {}

    def of(self, key: Key, gang: Iterable[PodFacts]) -> Report | None:
        """What a pod of this gang said last."""
        answer = self._answers.get(key)
        return answer.report if answer and any(p.uid == answer.uid for p in gang) else None

    def forget(self, key: Key) -> None:
        self._answers.pop(key, None)

    async def watch(self, chiefs: Callable[[], list[tuple[Key, PodFacts]]], may: asyncio.Event) -> None:
        """Ask for ever.

        Args:
            chiefs: the jobs that run, each with the pod of its rank 0.
            may: whether to ask.
        """
        while True:
            await may.wait()
            began = time.monotonic()
            questions = []
            for key, chief in chiefs():
                questions.append(asyncio.create_task(self._ask(key, chief)))
                await asyncio.sleep(1 / JOBS_PER_SECOND)
            await asyncio.gather(*questions)
            await asyncio.sleep(max(EVERY_SECONDS - (time.monotonic() - began), 0.1))

    async def _ask(self, key: Key, chief: PodFacts) -> None:
        known = self._answers.get(key)
        known = known if known and known.uid == chief.uid else Answer(chief.uid, next_time=_first_time(chief))
        if time.monotonic() < known.next_time:
            self._answers[key] = known
            return
        report = await self._cluster.progress(key[0], chief)
        if report is not None:
            self._answers[key] = Answer(chief.uid, report)
            self._news(key)
            return
        wait = 0.0 if self._cluster.inside else min(EVERY_SECONDS * 2**known.silences, MOST_SECONDS)
        self._answers[key] = Answer(chief.uid, known.report, known.silences + 1, time.monotonic() + wait)


def _first_time(chief: PodFacts) -> float:
    """When to ask a pod first, on the monotonic clock."""
    age = (datetime.now(UTC) - chief.started).total_seconds() if chief.started else 0.0
    return time.monotonic() + max(START_SECONDS - age, 0.0)
