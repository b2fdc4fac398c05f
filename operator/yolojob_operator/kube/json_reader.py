"""Decodes JSON of the API server, also that of objects which nobody can work with.

Go decodes JSON of 10,000 levels, Python of about a thousand, and code that walks through an object of fewer. An object
with more would end every watch and every list that contains it, of all namespaces. No real object needs many levels.
"""

from __future__ import annotations

import json
import re
from typing import Any

MAX_LEVELS = 64
"""Levels that are read, counted from the response: a list adds two. Real objects have at most twenty."""
PRUNED = f"(left out: nested deeper than {MAX_LEVELS} levels)"
"""What stands in place of a deeper value."""
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]')


def loads(data: bytes | str) -> Any:
    """Decode JSON; values below MAX_LEVELS become PRUNED.

    Raises:
        ValueError: it is not JSON.
    """
    text = data if isinstance(data, str) else data.decode("utf-8", "replace")
    try:
        value = json.loads(text)
    except RecursionError:
        return json.loads(_prune(text))
    return json.loads(_prune(text)) if _is_deep(value) else value


def is_pruned(value: Any) -> bool:
    """Return whether a decoded value has lost a part."""
    pending = [value]
    while pending:
        current = pending.pop()
        if current == PRUNED:
            return True
        pending.extend(_children(current))
    return False


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _is_deep(value: Any) -> bool:
    # For every event of every watch: it looks only at objects and arrays, and copies no values.
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_LEVELS):
        level = [
            child
            for parent in level
            for child in (parent.values() if type(parent) is dict else parent)
            if type(child) is dict or type(child) is list
        ]
        if not level:
            return False
    return True


def _prune(text: str) -> str:
    """Replace every object and array that begins below MAX_LEVELS.

    Raises:
        ValueError: one of them does not end.
    """
    parts: list[str] = []
    depth = start = 0
    for match in _TOKEN.finditer(text):
        symbol = match[0]
        if symbol in "[{":
            depth += 1
            if depth == MAX_LEVELS + 1:
                parts.append(text[start : match.start()])
        elif symbol in "]}":
            if depth == MAX_LEVELS + 1:
                parts.append(json.dumps(PRUNED))
                start = match.end()
            depth -= 1
    if depth > MAX_LEVELS:
        raise ValueError("an object or array does not end")
    return "".join([*parts, text[start:]])
