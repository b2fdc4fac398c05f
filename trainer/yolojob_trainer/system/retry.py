"""Pauses between the retries of a request, growing up to a limit, until a timeout."""

from __future__ import annotations

import random
import sys
import threading
import time

FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.25, 10.0
QUIET_PAUSE_SECONDS = 1.0
"""A pause shorter than this is not worth a line in the log."""
MESSAGE_INTERVAL_SECONDS = 10.0
"""Between two lines in the log, of all requests of this process."""


class Backoff:
    """Waits between retries. The timeout runs from the construction, or from the last `reset`."""

    def __init__(self, timeout: float) -> None:
        """
        Args:
            timeout: seconds after which there are no more retries.
        """
        self._timeout = timeout
        self.reset()

    def reset(self) -> None:
        """Restart after progress: with the first pause and the full timeout."""
        self._deadline = time.monotonic() + self._timeout
        self._pause = FIRST_PAUSE_SECONDS

    def wait(self, reason: Exception) -> bool:
        """Sleep and return True; return False immediately if the pause would end after the timeout.

        Args:
            reason: why the request has failed, for the log.
        """
        left = self._deadline - time.monotonic()
        if self._pause > left:
            return False
        if self._pause >= QUIET_PAUSE_SECONDS:
            _log(f"{reason}; retries for {left:.0f} s more")
        time.sleep(self._pause * random.uniform(0.5, 1.0))  # noqa: S311 - so that workers do not retry in lockstep
        self._pause = min(self._pause * 2, MAX_PAUSE_SECONDS)
        return True


_last_message = -MESSAGE_INTERVAL_SECONDS
_lock = threading.Lock()


def _log(line: str) -> None:
    global _last_message
    with _lock:
        now = time.monotonic()
        if now - _last_message < MESSAGE_INTERVAL_SECONDS:
            return
        _last_message = now
    print(f"yolojob: {line}", file=sys.stderr, flush=True)  # noqa: T201
