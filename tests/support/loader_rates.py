"""Loads batches of stock Ultralytics and of the trainer in turns, in one process; prints images per CPU second.

The argument is JSON: folder, images, width, height, imgsz, batch, rounds.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from yolojob_trainer import environment

environment.prepare()

import cv2  # noqa: E402 - after `prepare`
import numpy as np  # noqa: E402
import torch  # noqa: E402
from ultralytics.cfg import get_cfg  # noqa: E402
from ultralytics.data import build_dataloader, build_yolo_dataset  # noqa: E402
from ultralytics.data.utils import check_det_dataset  # noqa: E402
from yolojob_trainer.data import dataset, mosaic_window, sample_order  # noqa: E402

CLASSES, BOXES = 10, 6
WARM_UP_BATCHES, TIMED_BATCHES = 20, 12


def write(folder: Path, images: int, width: int, height: int) -> Path:
    """Writes JPEGs with the spectrum of photographs, and their labels; returns the data file."""
    random = np.random.default_rng(0)
    for split, count in (("train", images), ("val", 8)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = sum(
                cv2.resize(random.integers(0, 255, (size, size, 3)).astype(np.float32), (width, height)) / 4
                for size in (4, 16, 64, 256)
            )
            cv2.imwrite(str(folder / "images" / split / f"{i}.jpg"), pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])
            boxes = np.column_stack([random.integers(0, CLASSES, BOXES), random.uniform(0.2, 0.4, (BOXES, 4))])
            np.savetxt(folder / "labels" / split / f"{i}.txt", boxes, fmt=["%d"] + ["%.4f"] * 4)
    path = folder / "data.yaml"
    names = {i: str(i) for i in range(CLASSES)}
    path.write_text(yaml.safe_dump({"path": str(folder), "train": "images/train", "val": "images/val", "names": names}))
    return path


def stock(data: dict[str, Any], args: Any, cache: str | bool) -> Iterator[Any]:
    args = get_cfg(args, {"cache": cache})
    built = build_yolo_dataset(args, data["train"], args.batch, data, mode="train", stride=32)
    loader = build_dataloader(built, args.batch, 0, shuffle=True, device=torch.device("cpu"))
    while True:
        yield from loader


def ours(data: dict[str, Any], args: Any, folder: Path, *, cache: bool = False, recipes: bool = False) -> Iterator[Any]:
    built = dataset.NodeDataset(
        label_folder=folder / "caches",
        boundary=None,
        img_path=data["train"],
        imgsz=args.imgsz,
        batch_size=args.batch,
        augment=True,
        hyp=args,
        stride=32,
        task="detect",
        data=data,
    )
    order = sample_order.SampleOrder(samples=len(built), batch=args.batch, shards=1, seed=0)
    window = mosaic_window.MosaicWindow(order)
    if cache:
        built.keep_in_memory(True)
    built.keep_recent(window.length + args.batch, 2**30)
    samples = dataset.TrainSamples(built, seed=0, window=window, close_mosaic_at=10**6, hyp=args)
    samples.sends_recipes = recipes
    batches = dataset.MicroBatches(order, rank=0, world_size=1, start=(0, 0))
    return dataset.loader(samples, batches, workers=0, prefetch=1, pin_memory=False)


def main() -> None:
    options = json.loads(sys.argv[1])
    folder = Path(options["folder"])
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    data = check_det_dataset(write(folder, options["images"], options["width"], options["height"]))
    args = get_cfg(overrides={"imgsz": options["imgsz"], "batch": options["batch"], "task": "detect"})
    loaders: dict[str, Callable[[], Iterator[Any]]] = {
        "stock": lambda: stock(data, args, False),
        "stock cached": lambda: stock(data, args, "ram"),
        "ours": lambda: ours(data, args, folder),
        "ours cached": lambda: ours(data, args, folder, cache=True),
        "recipes": lambda: ours(data, args, folder, recipes=True),
    }
    running = {name: make() for name, make in loaders.items()}
    for loader in running.values():
        for _ in range(WARM_UP_BATCHES):
            next(loader)
    rates: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(options["rounds"]):
        for name, loader in running.items():
            start = time.process_time()
            for _ in range(TIMED_BATCHES):
                next(loader)
            rates[name].append(TIMED_BATCHES * options["batch"] / (time.process_time() - start))
    print(json.dumps(rates), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
