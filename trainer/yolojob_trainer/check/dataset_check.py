"""Checks a dataset: its images, its labels as the training reads them, and what a training sample costs."""

from __future__ import annotations

import base64
import hashlib
import itertools
import math
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ultralytics.data.utils import img2label_paths
from ultralytics.utils.plotting import plot_images

from yolojob.api.dataset_check import BOX_EDGES, LISTED, RATIO_EDGES, DatasetCheck, FileProblem, Leak, SplitCheck
from yolojob.api.task import Task
from yolojob_trainer.check import image_facts
from yolojob_trainer.check.image_facts import FactsFile, ImageFacts, Progress
from yolojob_trainer.data.dataset_description import DatasetDescription
from yolojob_trainer.data.scan import IGNORED
from yolojob_trainer.errors import BadInput
from yolojob_trainer.system.process import available_cpus
from yolojob_trainer.training.trainer import Trainer

SAMPLED_BATCHES = 4
"""Batches of training samples that are timed."""
HAS_LABEL_FILES = (Task.DETECT, Task.SEGMENT, Task.POSE, Task.OBB)
"""The tasks whose labels are text files with a row for each object."""

Build = Callable[[], Trainer]
"""Builds the trainer of the job."""


def check(
    description: DatasetDescription, task: Task, image_size: int, cache: Path, progress: Progress
) -> DatasetCheck:
    """Check the files of a dataset.

    Args:
        description: of the dataset.
        task: of the training.
        image_size: spec.train.imgsz.
        cache: cache folder of this node, for the results of an interrupted check.
        progress: called with (bytes read, all bytes).
    """
    images = {name: image_facts.images_of(split) for name, split in description.splits.items()}
    paths = list(dict.fromkeys(itertools.chain(*images.values())))
    common = hashlib.sha256(str(paths[0].parent if paths else "").encode()).hexdigest()[:16]
    known = FactsFile(cache / "checks" / f"{common}.jsonl")
    facts = image_facts.read_all(paths, known, available_cpus(), progress)
    result = DatasetCheck(
        task=task.value,
        image_size=image_size,
        names=list(description.names.values()),
        splits={name: _split(files, facts, task) for name, files in images.items()},
    )
    times = [found.seconds for found in facts.values() if found.seconds]
    result.decode_seconds = statistics.fmean(times) if times else None
    leaks = _leaks(images, facts)
    result.leak_count, result.leaks = len(leaks), leaks[:LISTED]
    return result


def add_labels(result: DatasetCheck, build: Build, sheet: Path) -> None:
    """Add what the set-up of a training finds: its labels, and its samples with their cost.

    Args:
        result: of `check`.
        build: builds the trainer of the job.
        sheet: file for the preview.
    """
    try:
        trainer = build()
        with trainer.prepared():
            datasets = {"train": trainer.samples.dataset, trainer.args.split: trainer.test_loader.dataset}
            for name, dataset in datasets.items():
                if name in result.splits:
                    _add_labels(result.splits[name], dataset, result)
            result.sample_seconds = _sample_seconds(trainer)
            result.preview = _preview(trainer, sheet)
    except BadInput as error:
        result.refused = str(error)


def _split(files: list[Path], facts: dict[Path, ImageFacts], task: Task) -> SplitCheck:
    """Return the facts about the files of a split."""
    split = SplitCheck(images=len(files))
    for path in files:
        found = facts.get(path)
        problem = found.problem if found else "does not exist"
        if found is None or problem:
            split.broken.append(FileProblem(file=str(path), reason=problem or ""))
            continue
        split.bytes += found.size
        split.modes[found.mode] = split.modes.get(found.mode, 0) + 1
        split.ratios[_place(found.width / found.height, RATIO_EDGES)] += 1
    split.broken_count, split.broken = len(split.broken), split.broken[:LISTED]
    same: defaultdict[str, list[str]] = defaultdict(list)
    for path in files:
        if (found := facts.get(path)) and found.content:
            same[found.content].append(str(path))
    groups = [group for group in same.values() if len(group) > 1]
    split.duplicate_count, split.duplicates = sum(len(group) - 1 for group in groups), groups[:LISTED]
    if task in HAS_LABEL_FILES:
        orphans = _orphans(files)
        split.orphan_count, split.orphans = len(orphans), orphans[:LISTED]
    return split


def _orphans(files: list[Path]) -> list[str]:
    """Return the label files beside those of the images that have no image."""
    labels = {Path(path) for path in img2label_paths([str(file) for file in files])}
    # Not where images and labels share a folder: other texts may be in it.
    folders = {path.parent for path in labels} - {file.parent for file in files}
    return sorted(str(path) for folder in folders for path in folder.glob("*.txt") if path not in labels)


def _leaks(images: dict[str, list[Path]], facts: dict[Path, ImageFacts]) -> list[Leak]:
    """Return the pictures that are in several splits; each once, with the same bytes or with the same look."""
    leaks: list[Leak] = []
    seen: set[tuple[str, ...]] = set()
    for same_bytes in (True, False):
        by_hash: defaultdict[str, dict[str, str]] = defaultdict(dict)
        for split, files in images.items():
            for path in files:
                found = facts.get(path)
                key = (found.content if same_bytes else found.look) if found else ""
                if key:
                    by_hash[key].setdefault(split, str(path))
        for group in by_hash.values():
            pair = tuple(group.values())
            if len(pair) > 1 and pair not in seen:
                seen.add(pair)
                leaks.append(Leak(files=list(pair), same_bytes=same_bytes))
    return leaks


def _place(value: float, edges: Iterable[float]) -> int:
    """Return the number of the interval between the edges in which a value is."""
    return int(np.searchsorted(list(edges), value, side="right"))


def _add_labels(split: SplitCheck, dataset: Any, result: DatasetCheck) -> None:
    """Add what the scan of the labels has found."""
    known = {problem.file for problem in split.broken}
    for message in dataset.left_out:
        image, _, reason = IGNORED.split(message, maxsplit=1)
        if image not in known:
            split.broken_count += 1
            split.broken = [*split.broken, FileProblem(file=image, reason=reason)][:LISTED]
    if result.task == Task.CLASSIFY:
        numbers = Counter(sample[1] for sample in dataset.samples)
        split.classes = {name: numbers[i] for i, name in enumerate(result.names)}
        return
    split.without_label, split.empty = dataset.scan.missing, dataset.scan.empty
    if Task(result.task) not in HAS_LABEL_FILES:
        return
    counts: Counter[int] = Counter()
    for label in dataset.labels:
        counts.update(label["cls"].reshape(-1).astype(int).tolist())
        height, width = label["shape"]
        scale = result.image_size / max(height, width)
        for box_width, box_height in label["bboxes"][:, 2:4]:
            pixels = math.sqrt(float(box_width) * width * float(box_height) * height) * scale
            split.box_sizes[_place(pixels, BOX_EDGES)] += 1
    split.objects = sum(counts.values())
    split.classes = {name: counts[i] for i, name in enumerate(result.names)}


def _sample_seconds(trainer: Trainer) -> float:
    """Return the time to make a training sample in this process."""
    batches = trainer.batches(0, 0)
    next(batches)  # the first one warms up
    began, samples = time.perf_counter(), 0
    for batch in itertools.islice(batches, SAMPLED_BATCHES):
        samples += len(trainer.to_device(batch)["img"])
    return (time.perf_counter() - began) / max(samples, 1)


def _preview(trainer: Trainer, sheet: Path) -> str:
    """Return the first training samples with their labels, as Ultralytics draws them: a JPEG in base64."""
    batch = trainer.to_device(next(trainer.batches(0, 0)))
    batch.setdefault("batch_idx", torch.arange(len(batch["img"])))  # a classification has one label for each image
    names = trainer.data["names"]
    plot_images(labels=batch, paths=batch["im_file"], fname=sheet, names=names, threaded=False)
    return base64.b64encode(sheet.read_bytes()).decode()
