"""Checks a dataset: its images, its labels as the training reads them, and what a training sample costs."""

from __future__ import annotations

import base64
import glob
import hashlib
import itertools
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ultralytics.data.utils import IMG_FORMATS, img2label_paths
from ultralytics.utils.plotting import plot_images

from yolojob.api.dataset_check import BOX_EDGES, LISTED, RATIO_EDGES, DatasetCheck, FileProblem, Leak, SplitCheck
from yolojob.api.task import Task
from yolojob_trainer.check import image_facts
from yolojob_trainer.check.image_facts import FactsFile, ImageFacts, Progress
from yolojob_trainer.data.dataset_description import DatasetDescription
from yolojob_trainer.data.dataset_images import image_files
from yolojob_trainer.data.scan import IGNORED
from yolojob_trainer.errors import BadInput
from yolojob_trainer.system.process import available_cpus
from yolojob_trainer.training.trainer import Trainer

SAMPLED_BATCHES = 4
"""Batches of training samples that are timed."""
CLASS_LIST = "classes.txt"
"""File that some tools put beside the labels."""
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
    images = {name: sorted(set(image_files(split))) for name, split in description.splits.items()}
    paths = list(dict.fromkeys(itertools.chain(*images.values())))
    common = hashlib.sha256(os.fsencode(paths[0].parent) if paths else b"").hexdigest()[:16]
    known = FactsFile(cache / "checks" / f"{common}-{image_facts.FORMAT}.jsonl")
    facts = image_facts.read_all(paths, known, available_cpus(), progress)
    result = DatasetCheck(
        task=task.value,
        image_size=image_size,
        names=list(description.names.values()),
        splits={name: _split(files, facts) for name, files in images.items()},
    )
    if task in HAS_LABEL_FILES:
        _add_orphans(result, images)
    result.decode_seconds = image_facts.decode_seconds([path for path, found in facts.items() if not found.problem])
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
                    _add_labels(result.splits[name], dataset, result, _used_classes(trainer))
            result.sample_seconds = _sample_seconds(trainer)
            result.preview = _preview(trainer, sheet)
    except BadInput as error:
        result.refused = _shown(str(error))
    for split in result.splits.values():
        _limit(split)


def _used_classes(trainer: Trainer) -> dict[int, str]:
    """Return the names of the classes that the training uses: spec.train may choose some, or see all as one."""
    names: dict[int, str] = trainer.data["names"]
    chosen = None if trainer.args.single_cls else trainer.args.classes
    return {number: name for number, name in names.items() if chosen is None or number in chosen}


def _split(files: list[Path], facts: dict[Path, ImageFacts]) -> SplitCheck:
    """Return the facts about the files of a split, with all problems."""
    split = SplitCheck(images=len(files))
    same: defaultdict[str, list[str]] = defaultdict(list)
    for path in files:
        found = facts.get(path)
        problem = found.problem if found else "does not exist"
        if found is None or problem:
            split.broken.append(FileProblem(file=_shown(path), reason=problem or ""))
            continue
        split.bytes += found.size
        split.modes[found.mode] = split.modes.get(found.mode, 0) + 1
        split.ratios[_place(found.width / found.height, RATIO_EDGES)] += 1
        same[found.content].append(_shown(path))
    split.broken_count = len(split.broken)
    groups = [group for group in same.values() if len(group) > 1]
    split.duplicate_count, split.duplicates = sum(len(group) - 1 for group in groups), groups[:LISTED]
    return split


def _limit(split: SplitCheck) -> None:
    """Count the problems of a split, and keep those that are listed."""
    split.broken_count, split.broken = len(split.broken), split.broken[:LISTED]


def _shown(path: Path | str) -> str:
    """Return a path as text that can be encoded: the name of a file may be any bytes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _add_orphans(result: DatasetCheck, images: dict[str, list[Path]]) -> None:
    """Add the label files that have no image, in any split: lists may take several splits from one folder."""
    labels = {name: [Path(path) for path in img2label_paths(list(map(str, files)))] for name, files in images.items()}
    known, listed = set(itertools.chain(*labels.values())), set[Path]()
    for name, paths in labels.items():
        # Not where images and labels share a folder: other texts may be in it.
        folders = {path.parent for path in paths} - {file.parent for file in images[name]}
        found = {path for folder in folders for path in folder.glob("*.txt")} - known - listed
        found = {path for path in found if not _has_image(path)}
        orphans = sorted(path for path in found if path.name != CLASS_LIST)
        listed |= found
        split = result.splits[name]
        split.orphan_count, split.orphans = len(orphans), [_shown(path) for path in orphans[:LISTED]]


def _has_image(label: Path) -> bool:
    """Return whether a label file has an image, which then belongs to no split."""
    before, found, after = str(label).rpartition(f"{os.sep}labels{os.sep}")
    folder = Path(f"{before}{os.sep}images{os.sep}{after}").parent
    return bool(found) and any(
        path.suffix[1:].lower() in IMG_FORMATS for path in folder.glob(f"{glob.escape(label.stem)}.*")
    )


def _leaks(images: dict[str, list[Path]], facts: dict[Path, ImageFacts]) -> list[Leak]:
    """Return the pictures of other splits that are in the first one, too; each once, preferably for the same bytes."""
    first, *others = images
    leaks: list[Leak] = []
    seen: set[Path] = set()
    for same_bytes in (True, False):
        by_hash: dict[str, Path] = {}
        for path in images[first]:
            if (found := facts.get(path)) and (key := found.content if same_bytes else found.look):
                by_hash.setdefault(key, path)
        for path in itertools.chain(*(images[name] for name in others)):
            found = facts.get(path)
            copy = by_hash.get(found.content if same_bytes else found.look) if found else None
            if copy and path not in seen:
                seen.add(path)
                leaks.append(Leak(files=[_shown(copy), _shown(path)], same_bytes=same_bytes))
    return leaks


def _place(values: Any, edges: Sequence[float]) -> Any:
    """Return the numbers of the intervals between the edges in which values are."""
    return np.searchsorted(edges, values, side="right")


def _add_labels(split: SplitCheck, dataset: Any, result: DatasetCheck, names: dict[int, str]) -> None:
    """Add what the scan of the labels has found.

    Args:
        split: to complete.
        dataset: of the split, as the training reads it.
        result: of the whole check.
        names: of the classes that the training uses, by id.
    """
    known = {problem.file for problem in split.broken}
    for message in dataset.left_out:
        image, _, reason = IGNORED.split(message, maxsplit=1)
        if (file := _shown(image)) not in known:
            split.broken.append(FileProblem(file=file, reason=_shown(reason)))
    if result.task == Task.CLASSIFY:
        numbers = Counter(sample[1] for sample in dataset.samples)
        split.classes = _by_name(numbers, names)
        return
    split.without_label, split.empty = dataset.scan.missing, dataset.scan.empty
    if Task(result.task) not in HAS_LABEL_FILES:
        return
    counts: Counter[int] = Counter()
    sizes = np.zeros(len(BOX_EDGES) + 1, np.int64)
    for label in dataset.labels:
        counts.update(label["cls"].reshape(-1).astype(int).tolist())
        height, width = label["shape"]
        scale = result.image_size / max(height, width)
        pixels = np.sqrt(label["bboxes"][:, 2:4].prod(1) * width * height) * scale
        sizes += np.bincount(_place(pixels, BOX_EDGES), minlength=len(sizes))
    split.box_sizes = sizes.tolist()
    split.objects = sum(counts.values())
    split.classes = _by_name(counts, names)


def _by_name(counts: Counter[int], names: dict[int, str]) -> dict[str, int]:
    """Return counts by the names of classes; two classes may have the same."""
    result = dict.fromkeys(names.values(), 0)
    for number, name in names.items():
        result[name] += counts[number]
    return result


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
