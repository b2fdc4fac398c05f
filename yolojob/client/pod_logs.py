"""Reads the logs of several pods at once, line by line."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from yolojob.api.errors import ClusterError
from yolojob.client.responses import error_message

MAX_QUEUED_LINES = 10_000
"""Lines that are read ahead of a slow consumer."""
POLL_INTERVAL_SECONDS = 1.0
"""Time between two checks whether a pod has started."""
MAX_FOLLOW_SECONDS = 30 * 86400.0
"""Read timeout while following a log, which may be silent for any time; the Kubernetes client needs a number."""
STARTING_REASONS = ("ContainerCreating", "PodInitializing")
"""Reasons for which a container has not started yet, and will. Other reasons are errors."""


@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """What to read of a log."""

    follow: bool
    """Wait until the pod has started, and read new lines until it ends."""
    tail: int | None
    """Number of last lines to start with; None: start with the first line."""


WorkerLine = tuple[int, str]
"""(worker, line)."""
OpenLog = Callable[[str, LogOptions], Any]
"""Returns the response with a pod's log, not read yet."""


def read_logs(pods: Mapping[int, str], open_log: OpenLog, options: LogOptions) -> Iterator[WorkerLine]:
    """The lines of all pods, as they come.

    Args:
        pods: names of the pods by worker.
        open_log: requests a pod's log.
        options: what to read.

    Raises:
        ClusterError: a log could not be read; raised after the other logs have ended.
    """
    results: queue.Queue[tuple[int, str | ClusterError | None]] = queue.Queue(MAX_QUEUED_LINES)

    def read(worker: int, pod: str) -> None:
        try:
            rest = b""
            for block in _open_started(pod, open_log, options).stream(4096):
                *lines, rest = (rest + block).split(b"\n")
                for line in lines:
                    results.put((worker, line.decode(errors="replace")))
            if rest:
                results.put((worker, rest.decode(errors="replace")))
        except Exception as error:  # noqa: BLE001 - the Kubernetes client raises many kinds, all with the same meaning
            results.put((worker, ClusterError(f"worker {worker}: no log: {error_message(error)}")))
        finally:
            results.put((worker, None))

    for worker, pod in pods.items():
        threading.Thread(target=read, args=(worker, pod), daemon=True).start()
    running, error = len(pods), None
    while running:
        worker, result = results.get()
        if result is None:
            running -= 1
        elif isinstance(result, str):
            yield worker, result
        else:
            error = result
    if error is not None:
        raise error


def _open_started(pod: str, open_log: OpenLog, options: LogOptions) -> Any:
    """The response with a pod's log. With `follow`, waits until the pod has a node and its container has started."""
    from kubernetes.client import ApiException

    while True:
        try:
            response = open_log(pod, options)
            if response.status != 204 or not options.follow:  # No Content: the pod has no node yet
                return response
        except ApiException as error:
            is_starting = error.status == 400 and any(reason in error_message(error) for reason in STARTING_REASONS)
            if not (options.follow and is_starting):
                raise
        time.sleep(POLL_INTERVAL_SECONDS)


def wait_for_pods(
    existing_pods: Callable[[], Mapping[int, str]], expected_count: Callable[[], int]
) -> Mapping[int, str]:
    """The pods, once all of them exist.

    Args:
        existing_pods: returns the pods that exist, by worker.
        expected_count: returns the number of pods to wait for; 0 if no more pods will be created.
    """
    while True:
        count, pods = expected_count(), existing_pods()
        if len(pods) >= count:
            return pods
        time.sleep(POLL_INTERVAL_SECONDS)
