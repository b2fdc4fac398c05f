"""Parses the YAML, TOML and JSON files named on the command line, and reports those that are not valid.

A hook of .pre-commit-config.yaml: unlike the public hooks it needs no network.
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

PARSERS: dict[str, Callable[[str], Any]] = {
    ".json": json.loads,
    ".toml": tomllib.loads,
    ".yaml": lambda text: list(yaml.safe_load_all(text)),
    ".yml": lambda text: list(yaml.safe_load_all(text)),
}


def error(path: Path) -> str | None:
    """Why the file is not valid, or None; a file of another kind is valid."""
    parse = PARSERS.get(path.suffix)
    if parse is None:
        return None
    try:
        parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as problem:
        return f"{path}: {problem}"
    return None


if __name__ == "__main__":
    errors = [message for name in sys.argv[1:] if (message := error(Path(name)))]
    sys.exit("\n".join(errors) or None)
