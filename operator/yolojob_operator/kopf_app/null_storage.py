"""kopf's storages of what was handled, for an operator that only listens: nothing is compared, nothing is written.

Without change handlers kopf compares the objects all the same, by two deep copies of each at every event; that was a third of
the operator's CPU time with a hundred jobs.
"""

from __future__ import annotations

from typing import Any, cast

import kopf

_NOTHING = cast("kopf.BodyEssence", {})


class NoDiffBase(kopf.DiffBaseStorage):
    def build(self, **_: Any) -> kopf.BodyEssence:
        return _NOTHING

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        return None

    def store(self, **_: Any) -> None:
        """There is nothing to store."""


class NoProgress(kopf.ProgressStorage):
    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        """There is nothing to store."""

    def purge(self, **_: Any) -> None:
        """There is nothing to purge."""

    def touch(self, **_: Any) -> None:
        """There is nothing to touch."""

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        return essence
