"""Reads the logs of several pods at once, line by line."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from yolojob.api.errors import ClusterError
from yolojob.client.responses import error_message

MAX_QUEUED_LINES = 10_000
"""Lines that are read ahead of a slow consumer."""
POLL_INTERVAL_SECONDS = 1.0
"""Time between two checks whether a pod has started."""
MAX_FOLLOW_SECONDS = 30 * 86400.0
"""Read timeout while following a log, which may be silent for any time; the Kubernetes client needs a number."""
STOP_TIMEOUT_SECONDS = 5.0
"""Time limit for ending a thread that reads a log."""
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
ReadResult = tuple[int, str | ClusterError | None]
"""(worker, line, error or end)."""
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
    results: queue.Queue[ReadResult] = queue.Queue(MAX_QUEUED_LINES)
    readers = [
        _LogReader(worker, partial(open_log, pod, options), options.follow, results) for worker, pod in pods.items()
    ]
    for reader in readers:
        reader.start()
    try:
        running, error = len(readers), None
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
    finally:
        for reader in readers:
            reader.stop()
        deadline = time.monotonic() + STOP_TIMEOUT_SECONDS
        for reader in readers:
            reader.join(deadline)


class _LogReader:
    """Reads the log of one worker in a thread, and puts its lines into a queue, with None at the end."""

    def __init__(
        self, worker: int, open_log: Callable[[], Any], follow: bool, results: queue.Queue[ReadResult]
    ) -> None:
        self._worker, self._open_log, self._follow = worker, open_log, follow
        self._results = results
        self._response: Any = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end: a process that exits while threads read from sockets may abort."""
        self._stopped.set()
        if self._thread.is_alive() and self._response is not None:
            with suppress(
                AttributeError, OSError, RuntimeError, ValueError
            ):  # it has just ended, or urllib3 is older than 2.3
                self._response.shutdown()

    def join(self, deadline: float) -> None:
        """Wait for the thread to end, until this moment of the monotonic clock."""
        self._thread.join(max(deadline - time.monotonic(), 0.0))

    def _run(self) -> None:
        try:
            self._response = self._open_started()
            rest = b""
            for block in self._response.stream(4096) if self._response is not None else ():
                *lines, rest = (rest + block).split(b"\n")
                for line in lines:
                    self._put(line.decode(errors="replace"))
            if rest:
                self._put(rest.decode(errors="replace"))
        except Exception as error:  # noqa: BLE001 - the Kubernetes client raises many kinds, all with the same meaning
            self._put(ClusterError(f"worker {self._worker}: no log: {error_message(error)}"))
        finally:
            self._put(None)

    def _put(self, result: str | ClusterError | None) -> None:
        while not self._stopped.is_set():
            with suppress(queue.Full):
                self._results.put((self._worker, result), timeout=POLL_INTERVAL_SECONDS)
                return

    def _open_started(self) -> Any:
        """The response with the log; None after `stop`.

        With `follow`, waits until the pod has a node and its container has started.
        """
        from kubernetes.client import ApiException

        while not self._stopped.is_set():
            try:
                response = self._open_log()
                if response.status != 204 or not self._follow:  # No Content: the pod has no node yet
                    return response
            except ApiException as error:
                is_starting = error.status == 400 and any(reason in error_message(error) for reason in STARTING_REASONS)
                if not (self._follow and is_starting):
                    raise
            self._stopped.wait(POLL_INTERVAL_SECONDS)
        return None


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
