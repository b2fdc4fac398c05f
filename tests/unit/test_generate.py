"""What is generated is committed as it is generated. What Helm renders is in tests/cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
from generate import FILES


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_generated_is_committed(path: Path) -> None:
    assert path.read_text() == FILES[path](), "run `make generate`"
