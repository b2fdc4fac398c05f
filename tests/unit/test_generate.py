"""The committed files equal what `make generate` writes. tests/cluster checks what Helm renders."""

from __future__ import annotations

from pathlib import Path

import pytest
from generate import FILES

pytestmark = pytest.mark.processes


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_committed_file_equals_the_generated_one(path: Path) -> None:
    assert path.read_text() == FILES[path](), "run `make generate`"
