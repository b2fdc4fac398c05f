"""Whether it is this operator's turn: of several that watch the same jobs, one works."""

from __future__ import annotations

import asyncio
import time


class Turn:
    """Told by the keeper of the lease; asked by everything that works."""

    def __init__(self) -> None:
        self.since = 0.0
        """When it came; monotonic clock."""
        self._until = 0.0
        self._came = asyncio.Event()

    def lasts(self, until: float) -> None:
        """Up to which moment of the monotonic clock it is ours; 0: it is not."""
        if until and not self.is_ours():
            self.since = time.monotonic()
        self._until = until
        if self.is_ours():
            self._came.set()
        else:
            self._came.clear()

    def is_ours(self) -> bool:
        return time.monotonic() < self._until

    async def wait(self) -> None:
        """Until it is ours."""
        while not self.is_ours():
            self._came.clear()
            await self._came.wait()
