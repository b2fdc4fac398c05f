"""Storages for kopf that store nothing: this operator has no change handlers, so kopf needs no state of its own.

With its default storages kopf compares every object with its last state at every event, by two deep copies; that was a
third of the operator's CPU time with a hundred jobs.
"""

from __future__ import annotations

from typing import Any, cast

import kopf

_NOTHING = cast("kopf.BodyEssence", {})


class NoDiffBase(kopf.DiffBaseStorage):
    """Remembers no last state of an object."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return _NOTHING

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        return None

    def store(self, **_: Any) -> None:
        """Do nothing."""


class NoProgress(kopf.ProgressStorage):
    """Remembers no progress of handlers."""

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        """Do nothing."""

    def purge(self, **_: Any) -> None:
        """Do nothing."""

    def touch(self, **_: Any) -> None:
        """Do nothing."""

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        return essence
