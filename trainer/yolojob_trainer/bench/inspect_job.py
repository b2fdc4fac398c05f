"""What network and data of a job are made of, counted without training: `yolojob estimate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from ultralytics.data.utils import IMG_FORMATS
from ultralytics.nn.tasks import DetectionModel

from yolojob.api.measurement import DataFacts
from yolojob.api.reasons import Reason
from yolojob.api.run import Run
from yolojob.api.spec import Dataset
from yolojob_trainer.data import dataset_config
from yolojob_trainer.data.object_store import Remote
from yolojob_trainer.errors import BadInput
from yolojob_trainer.model import profile, resolve

if TYPE_CHECKING:
    from yolojob_trainer.observability.progress_report import Reporter

ANY_CLASSES = 80
"""As COCO has; where the data set's own number is not known yet. It changes the head a little."""


def run(run: Run, reporter: Reporter, *, cache: Path, volumes: Path) -> None:
    """Count, and tell the reporter. What lies in a store is listed, not fetched.

    Raises:
        BadInput: there is no such model or data set.
    """
    classes, facts = _dataset(run.spec.dataset, run.spec.train.fraction, cache=cache, volumes=volumes)
    description, _ = resolve.resolve(run.spec.model, volumes=volumes, cache=cache)
    try:
        model = DetectionModel(description, nc=classes or ANY_CLASSES, verbose=False)
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, AssertionError) as error:
        raise BadInput(Reason.INVALID_MODEL, f"spec.model: the network cannot be built: {error}") from error
    amp = run.spec.train.amp
    # What is asked for, on machines that are not this one: half of fp32 wherever there is mixed precision.
    dtype = torch.float32 if amp is False else torch.bfloat16
    model.to(memory_format=torch.channels_last)
    parts = profile.of(model, run.spec.train.imgsz, dtype)
    reporter.conclude(model_profile=parts, data=facts)


def size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _dataset(dataset: Dataset, fraction: float | None, *, cache: Path, volumes: Path) -> tuple[int | None, DataFacts]:
    """(classes, facts), as far as they are known without fetching."""
    if dataset.uri.is_remote:
        files = Remote(str(dataset.uri), "spec.dataset.uri").files()
        sizes = [file.size for file in files]
        total = None if None in sizes else sum(size or 0 for size in sizes)
        return None, DataFacts(bytes=total)
    folder = dataset_config.locate(dataset, cache=cache, volumes=volumes, progress=lambda *_: None)
    description = dataset_config.describe(folder, dataset.config)
    train, val = (sum(_images(Path(part)) for part in description[split]) for split in ("train", "val"))
    if fraction is not None:
        train = int(fraction) if fraction > 1 else round(train * fraction)
    return len(description["names"]), DataFacts(images=train, val_images=val, bytes=size(folder))


def _images(part: Path) -> int:
    """Images of a split: a folder of them, or a text file with a line for each."""
    if part.is_file():
        return sum(bool(line.strip()) for line in part.read_text(encoding="utf-8-sig").splitlines())
    return sum(path.suffix[1:].lower() in IMG_FORMATS for path in part.rglob("*"))
