"""Finds the splits and classes of a classification: a folder for each split, with a folder of images for each class."""

from __future__ import annotations

from pathlib import Path

from yolojob.api.reasons import Reason
from yolojob_trainer.data.dataset_description import MAX_CLASSES, SEARCH_DEPTH, DatasetDescription, Split
from yolojob_trainer.data.untrusted import MAX_NAME, is_class_name
from yolojob_trainer.errors import BadInput

SPLIT_NAMES = {"val": ("val", "valid", "validation", "test"), "test": ("test", "val", "valid", "validation")}
"""Folders that hold a split, in Ultralytics' order. Without a split for validation it takes that for tests."""
NDJSON = ".ndjson.yaml"
"""File beside the splits of a dataset whose folders are class ids."""
LABELLED_FOLDERS = {"images", "labels", "annotations"}
"""Folders of a dataset with label files."""


def describe(folder: Path, split: str, boundary: Path | None) -> DatasetDescription:
    """Return the description of a dataset whose classes are folders.

    Args:
        folder: the dataset, without links.
        split: the split for validation.
        boundary: folder that links must not leave; None if they may lead anywhere.

    Raises:
        BadInput: a folder is missing, or a link leads out.
    """
    root = _root(folder)
    names = SPLIT_NAMES.get(split, (split,))
    validation = next((root / name for name in names if (root / name).is_dir()), None)
    if validation is None:
        raise _error(f"{root}: has no folder for the validation: expected {' or '.join(names)}")
    if (root / NDJSON).exists():
        raise _error(f"{root / NDJSON}: folders of Ultralytics' NDJSON format are not supported; name them by class")
    for path in (root / "train", validation):
        if boundary and not path.resolve().is_relative_to(boundary):
            raise _error(f"{path}: is a link out of the volume; copy the data into it")
    classes = sorted(path.name for path in (root / "train").iterdir() if path.is_dir())
    if not 0 < len(classes) <= MAX_CLASSES:
        raise _error(
            f"{root / 'train'}: has {len(classes)} folders; it needs one for each class, at most {MAX_CLASSES}"
        )
    if set(classes) <= LABELLED_FOLDERS:
        raise _error(
            f"{root / 'train'}: has the folders {', '.join(classes)}, as a dataset for detection; a classification "
            "needs a folder of images for each class"
        )
    for name in classes:
        if not is_class_name(name):
            raise _error(f"{root / 'train'}: {name[:MAX_NAME]!r} is no name for a class")
    return DatasetDescription(
        names=dict(enumerate(classes)),
        splits={"train": Split(folders=[root / "train"]), split: Split(folders=[validation])},
        channels=3,
        settings={},
    )


def _root(folder: Path) -> Path:
    """Return the folder with `train`: the dataset, or one further down.

    Raises:
        BadInput: there is none, or more than one.
    """
    found: list[Path] = []
    for depth in range(SEARCH_DEPTH + 1):
        found = [path.parent for path in folder.glob("/".join(["*"] * depth + ["train"])) if path.is_dir()]
        found = [path for path in found if "__MACOSX" not in path.parts]
        if len(found) == 1:
            return found[0]
        if found:
            break
    problem = "several folders named train" if found else "no folder named train"
    raise _error(
        f"{folder}: has {problem}; a classification needs train and val, each with a folder of images for each class"
    )


def _error(message: str) -> BadInput:
    return BadInput(Reason.INVALID_DATASET, f"spec.dataset: {message}")
