"""Time and memory for the labels of a dataset with a million images."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.harness import Report, script

IMAGES = int(os.environ.get("YOLOJOB_BENCH_IMAGES", "1000000"))
LOADERS = 2
MAX_PRIVATE_BYTES = 200
"""Of a loader process for each image of the dataset; a Python dictionary with labels takes 2,000."""


@pytest.mark.timeout(3 * 3600)
def test_labels_of_many_images_are_not_copied_to_loader_processes(tmp_path: Path, report: Report) -> None:
    options = {"folder": str(tmp_path / "data"), "images": IMAGES, "loaders": LOADERS, "batches": 100}
    found = script("large_dataset.py", options)
    report.add("large dataset", images=IMAGES, **found)
    allowance = 50 + IMAGES * MAX_PRIVATE_BYTES / 2**20
    assert len(found["private MiB of each loader"]) == LOADERS
    assert max(found["private MiB of each loader"]) < allowance
