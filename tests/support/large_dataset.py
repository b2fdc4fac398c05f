"""Opens a dataset of many small images as a training does; prints times and the memory of each process.

The argument is JSON: folder, images, loaders, batches.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from yolojob_trainer import environment

environment.prepare()

import cv2  # noqa: E402 - after `prepare`
import numpy as np  # noqa: E402
import psutil  # noqa: E402
from ultralytics.cfg import get_cfg  # noqa: E402
from yolojob_trainer.data.dataset import MicroBatches, NodeDataset, TrainSamples, loader  # noqa: E402
from yolojob_trainer.data.mosaic_window import MosaicWindow  # noqa: E402
from yolojob_trainer.data.sample_order import SampleOrder  # noqa: E402

T = TypeVar("T")
IMGSZ, BATCH, BOXES = 64, 16, 7
"""COCO has 7.3 boxes in an image."""
MAX_LINKS = 60_000
"""Names of one file; ext4 allows 65,000."""


def write(folder: Path, images: int) -> None:
    """Write a dataset whose files are names of a few images."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 255, (IMGSZ, IMGSZ, 3)).astype(np.uint8)
    boxes = np.column_stack([random.integers(0, 80, BOXES), random.uniform(0.2, 0.4, (BOXES, 4))])
    for kind, suffix in (("images", "jpg"), ("labels", "txt")):
        target = folder / kind / "train"
        target.mkdir(parents=True)
        source = target
        for i in range(images):
            path = target / f"{i:012d}.{suffix}"
            if i % MAX_LINKS:
                os.link(source, path)
                continue
            source = path
            if kind == "images":
                cv2.imwrite(str(path), pixels)
            else:
                np.savetxt(path, boxes, fmt=["%d"] + ["%.6f"] * 4)


def open_dataset(folder: Path) -> NodeDataset:
    args = get_cfg(overrides={"imgsz": IMGSZ, "batch": BATCH, "task": "detect"})
    return NodeDataset(
        label_folder=folder / "caches",
        boundary=None,
        img_path=str(folder / "images" / "train"),
        imgsz=IMGSZ,
        batch_size=BATCH,
        augment=True,
        hyp=args,
        stride=32,
        task="detect",
        data={"names": {i: str(i) for i in range(80)}, "nc": 80, "channels": 3},
    )


def timed(call: Callable[[], T]) -> tuple[float, T]:
    start = time.perf_counter()
    value = call()
    return time.perf_counter() - start, value


def mebibytes(process: psutil.Process, kind: str) -> int:
    return int(getattr(process.memory_full_info(), kind) / 2**20)


def load_batches(dataset: NodeDataset, processes: int, count: int) -> dict[str, Any]:
    """Load batches with loader processes; return the private memory of each."""
    order = SampleOrder(samples=len(dataset), batch=BATCH, shards=1, seed=0)
    window = MosaicWindow(order)
    samples = TrainSamples(dataset, seed=0, window=window, close_mosaic_at=10**6, hyp=get_cfg())
    batches = loader(
        samples,
        MicroBatches(order, rank=0, world_size=1, start=(0, 0)),
        workers=processes,
        prefetch=1,
        pin_memory=False,
    )
    first, _ = timed(lambda: next(batches))
    for _ in range(count):
        next(batches)
    children = psutil.Process().children()
    return {"first batch s": first, "private MiB of each loader": [mebibytes(child, "uss") for child in children]}


def main() -> None:
    options = json.loads(sys.argv[1])
    folder, this = Path(options["folder"]), psutil.Process()
    written, _ = timed(lambda: write(folder, options["images"]))
    before = mebibytes(this, "rss")
    scan, _ = timed(lambda: open_dataset(folder))
    cached, dataset = timed(lambda: open_dataset(folder))
    result = {
        "written s": written,
        "label scan s": scan,
        "with label cache s": cached,
        "labels MiB": mebibytes(this, "rss") - before,
        "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024 - before,
        "cache file MiB": round(sum(path.stat().st_size for path in (folder / "caches").rglob("*")) / 2**20),
        **load_batches(dataset, options["loaders"], options["batches"]),
    }
    print(json.dumps(result), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
