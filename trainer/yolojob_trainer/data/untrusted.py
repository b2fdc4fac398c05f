"""Checks values and paths from files that anybody may have written."""

from __future__ import annotations

import re
import unicodedata
from typing import Any, TypeGuard

MAX_NAME = 200
"""Characters of the name of a class."""
MAX_DIGITS, MAX_BITS = 30, 100
"""Of an integer. Python takes long for texts of many digits, and refuses to print them."""


def integer(value: Any) -> int | None:
    """Return an integer that may be written as 1, 1.0 or "1"; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, int):
        return value if value.bit_length() <= MAX_BITS else None
    if isinstance(value, str) and re.fullmatch(f"[+-]?[0-9]{{1,{MAX_DIGITS}}}", value):
        return int(value)  # exactly, unlike a float: ids may have 64 bits
    try:
        number = float(value)
    except ValueError:
        return None
    return int(number) if number.is_integer() else None


def has_control_characters(text: str) -> bool:
    """Return whether a text has characters that end a line, or that change what a terminal shows."""
    return any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text)


def is_class_name(name: object) -> TypeGuard[str]:
    """Return whether a value from a file is a name for a class."""
    return isinstance(name, str) and 0 < len(name) <= MAX_NAME and not has_control_characters(name)


def is_path(text: str) -> bool:
    """Return whether the file system accepts a text as a path."""
    try:
        length = len(text.encode())
    except UnicodeEncodeError:  # half of a pair of surrogates
        return False
    return "\0" not in text and length < 4096 and all(len(part.encode()) <= 255 for part in text.split("/"))


def is_relative_path(text: str) -> bool:
    """Return whether a text is a path that stays inside its folder, and that the file system accepts."""
    return is_path(text) and not has_control_characters(text) and text[:1] != "/" and ".." not in text.split("/")
