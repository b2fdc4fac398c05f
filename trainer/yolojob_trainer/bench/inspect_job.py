"""Counts network and data of a job without training, for `yolojob estimate`."""

from __future__ import annotations

from pathlib import Path

import torch

from yolojob.api.measurement import DataFacts, ModelProfile
from yolojob.api.run import Run
from yolojob.api.spec import YoloTrainingJobSpec
from yolojob.api.task import Task
from yolojob_trainer.data import job_dataset, official_datasets
from yolojob_trainer.data.dataset_images import image_files
from yolojob_trainer.data.remote_store import open_store
from yolojob_trainer.model import network, resolve
from yolojob_trainer.model.profile import profile_model

DEFAULT_CLASSES = 80
"""Number of classes of COCO; used while the dataset's own number is unknown. It changes the head a little."""


def inspect_job(run: Run, *, cache: Path, volumes: Path) -> tuple[ModelProfile, DataFacts]:
    """Profile the network and count the dataset. A dataset in an object store is listed, not downloaded.

    Raises:
        BadInput: model or dataset do not exist or cannot be used.
    """
    source = resolve.resolve(
        resolve.architecture_of(run.spec.model), volumes=volumes, cache=cache, task=run.spec.stated_task
    )
    classes, facts = _count_dataset(run.spec, source.task, cache=cache, volumes=volumes)
    with network.building("spec.model"):
        model = network.NETWORKS[source.task](source.description, nc=classes or DEFAULT_CLASSES, verbose=False)
    amp = run.spec.train.amp
    # For other machines than this one: with mixed precision, activations take half the memory of fp32.
    dtype = torch.float32 if amp is False else torch.bfloat16
    model.to(memory_format=torch.channels_last)
    return profile_model(model, run.spec.train.imgsz, dtype), facts


def folder_bytes(folder: Path) -> int:
    """Return the size of all files below a folder in bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _count_dataset(
    spec: YoloTrainingJobSpec, task: Task, *, cache: Path, volumes: Path
) -> tuple[int | None, DataFacts]:
    """Return (classes, facts), as far as they are known without a download."""
    dataset, fraction, split = spec.dataset, spec.train.fraction, spec.train.split or "val"
    if (uri := official_datasets.address(dataset.uri)).is_remote:
        files = open_store(uri, "spec.dataset.uri").files()
        sizes = [file.size for file in files]
        total = None if None in sizes else sum(size or 0 for size in sizes)
        return None, DataFacts(bytes=total)
    folder = job_dataset.locate(dataset, cache=cache, volumes=volumes, progress=lambda *_: None)
    node = job_dataset.NodeFolders(cache=cache, volumes=volumes)
    description = job_dataset.open_dataset(spec, folder, task, node).description
    train, val = (sum(1 for _ in image_files(description.splits[name])) for name in ("train", split))
    if fraction is not None:
        train = int(fraction) if fraction > 1 else round(train * fraction)
    classes = 1 if spec.train.single_cls else len(description.names)
    return classes, DataFacts(images=train, val_images=val, bytes=folder_bytes(folder))
