"""Logs of several pods at once, line by line as they come."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from yolojob.api.errors import ClusterError
from yolojob.client.responses import words

MOST_LINES = 10_000
"""Lines that wait for a reader who is slow."""
PAUSE = 1.0
"""Seconds between two looks at a pod that has not started."""
FOLLOWED_SECONDS = 30 * 86400.0
"""Who follows waits for words as long as it takes; the client wants a number."""
NOT_YET = ("ContainerCreating", "PodInitializing")
"""Why a container has not started, of which nothing but patience is wanted. Other reasons are told."""

Line = tuple[int, str]
Open = Callable[[str, bool, int | None, float], Any]
"""(pod, follow, tail, seconds between two words) → the answer, not read yet."""


def lines(pods: Mapping[int, str], open_log: Open, *, follow: bool, tail: int | None, seconds: float) -> Iterator[Line]:
    """(worker, line) of all these pods.

    Args:
        pods: names by worker.
        open_log: asks for one.
        follow: wait for the pods to start, and go on until they end.
        tail: begin with so many of each pod's last lines; with its first one unless given.
        seconds: to wait for words, of who does not follow.

    Raises:
        ClusterError: a log could not be read; told when the others have ended.
    """
    found: queue.Queue[tuple[int, str | ClusterError | None]] = queue.Queue(MOST_LINES)

    def read(worker: int, pod: str) -> None:
        try:
            rest = b""
            for block in _started(pod, open_log, follow=follow, tail=tail, seconds=seconds).stream(4096):
                *whole, rest = (rest + block).split(b"\n")
                for text in whole:
                    found.put((worker, text.decode(errors="replace")))
            if rest:
                found.put((worker, rest.decode(errors="replace")))
        except Exception as error:  # noqa: BLE001 - of the client's many, each means the same here
            found.put((worker, ClusterError(f"worker {worker}: no log: {words(error)}")))
        finally:
            found.put((worker, None))

    for worker, pod in pods.items():
        threading.Thread(target=read, args=(worker, pod), daemon=True).start()
    left, error = len(pods), None
    while left:
        worker, said = found.get()
        if said is None:
            left -= 1
        elif isinstance(said, str):
            yield worker, said
        else:
            error = said
    if error is not None:
        raise error


def _started(pod: str, open_log: Open, *, follow: bool, tail: int | None, seconds: float) -> Any:
    """A pod's log. Who follows it waits for its place and its start."""
    from kubernetes.client import ApiException

    while True:
        try:
            answer = open_log(pod, follow, tail, FOLLOWED_SECONDS if follow else seconds)
            if answer.status != 204 or not follow:  # No Content: it has no node yet
                return answer
        except ApiException as error:
            waits = error.status == 400 and any(reason in words(error) for reason in NOT_YET)
            if not (follow and waits):
                raise
        time.sleep(PAUSE)


def wanted(pods: Callable[[], Mapping[int, str]], count: Callable[[], int]) -> Mapping[int, str]:
    """The pods, once all of them are there.

    Args:
        pods: those that there are, by worker.
        count: how many there will be; 0 when no more will come.
    """
    while True:
        size, there = count(), pods()
        if len(there) >= size:
            return there
        time.sleep(PAUSE)
