"""Checks that code and documentation use the field's standard terms."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
from support import ROOT

FORBIDDEN = tuple(
    word.replace("-", "") for word in ("dee-ds", "cen-sus", "agen-da", "ail-ment", "chi-ef", "tres-pass", "fare-well")
)
"""Private words that the project once used for standard terms; spelled so that a search finds none of them."""
_PATTERN = re.compile(rf"\b({'|'.join(FORBIDDEN)})\b", re.IGNORECASE)
_SUFFIXES = {".py", ".md", ".yaml"}
_FOLDERS = ("docs", "helm", "manifests", "operator", "tests", "tools", "trainer", "yolojob")


def documents() -> list[Path]:
    """Code and documentation."""
    nested = [path for folder in _FOLDERS for path in (ROOT / folder).rglob("*")]
    return sorted(p for p in [*ROOT.glob("*"), *nested] if p.suffix in _SUFFIXES)


def test_documents_are_found() -> None:
    names = {str(path.relative_to(ROOT)) for path in documents()}
    assert {"README.md", "manifests/crd.yaml", "yolojob/api/spec.py", "docs/architecture.md"} <= names


@cache
def occurrences() -> list[tuple[str, str]]:
    """(forbidden word, place and line) of each occurrence in the documents."""
    return [
        (match[1].lower(), f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
        for path in documents()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for match in _PATTERN.finditer(line)
    ]


@pytest.mark.parametrize("word", FORBIDDEN)
def test_documents_do_not_use_forbidden_word(word: str) -> None:
    offenders = [place for forbidden, place in occurrences() if forbidden == word]
    assert offenders == [], "\n".join(offenders)
