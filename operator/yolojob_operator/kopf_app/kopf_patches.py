"""All places where this package patches kopf."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

from kopf._cogs.clients import api

from yolojob_operator.kube import json_reader

log = logging.getLogger(__name__)

SHOWN_CHARACTERS = 200
_NOTHING = {"type": "BOOKMARK", "object": {"metadata": {}}}
"""An event that kopf passes over."""


class LineReader:
    """Takes the place of the module `json` in kopf's client, which decodes the lines of a watch with it."""

    def __init__(self, unreadable: Callable[[], None]) -> None:
        self._unreadable = unreadable

    def loads(self, line: str) -> Any:
        """Decode a line of a watch; one that is no event becomes an event without effect."""
        try:
            event = json_reader.loads(line)
        except ValueError as error:
            log.error("a line of a watch is skipped: %s: %r", error, line[:SHOWN_CHARACTERS])
        else:
            if _is_event(event):
                return event
            log.error("an object of a watch is skipped: %r", line[:SHOWN_CHARACTERS])
        self._unreadable()
        return _NOTHING


def _is_event(event: Any) -> bool:
    """Return whether a line is an event about an object that has a name, or one without an object."""
    if not isinstance(event, dict) or not isinstance(event.get("object"), dict):
        return False
    return event.get("type") in ("ERROR", "BOOKMARK") or _is_named(event["object"])


def _is_named(item: Any) -> bool:
    metadata = item.get("metadata") if isinstance(item, dict) else None
    if not isinstance(metadata, dict):
        return False
    texts = [metadata.get(name) for name in ("name", "uid", "resourceVersion")]
    maps = [metadata[name] for name in ("labels", "annotations") if metadata.get(name) is not None]
    return all(isinstance(text, str) for text in texts) and all(isinstance(value, dict) for value in maps)


def decode_objects_singly(unreadable: Callable[[], None]) -> None:
    """Make kopf skip an object that cannot be read, in a list or in a watch, instead of ending the watch.

    Args:
        unreadable: called for each skipped object.

    Raises:
        RuntimeError: this version of kopf has no such functions.
    """
    if list(inspect.signature(api.get).parameters)[:1] != ["url"] or not hasattr(api, "json"):
        raise RuntimeError("the client of kopf has changed; check how it decodes JSON")

    async def get(url: str, *, payload: object | None = None, **options: Any) -> Any:
        response = await api.request(method="get", url=url, payload=payload, **options)
        async with response:
            content = json_reader.loads(await response.read())
        if isinstance(content, dict) and isinstance(content.get("items"), list):
            readable = [item for item in content["items"] if _is_named(item)]
            for _ in range(len(content["items"]) - len(readable)):
                log.error("an object of a list is skipped: it has no metadata: %s", url)
                unreadable()
            content["items"] = readable
        return content

    api.get = get
    api.json = LineReader(unreadable)
