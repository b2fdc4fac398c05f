"""Pauses between the retries of a request, growing up to a limit, until a timeout."""

from __future__ import annotations

import random
import time

FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.25, 10.0


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

    def wait(self) -> bool:
        """Sleep and return True; return False immediately if the pause would end after the timeout."""
        if time.monotonic() + self._pause > self._deadline:
            return False
        time.sleep(self._pause * random.uniform(0.5, 1.0))  # noqa: S311 - so that workers do not retry in lockstep
        self._pause = min(self._pause * 2, MAX_PAUSE_SECONDS)
        return True
