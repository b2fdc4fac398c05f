"""Reads and checks the data file of a dataset.

A dataset is untrusted data. This module reads its YAML file field by field: a `download:` script is never run, and
paths must stay inside the dataset.
"""

from __future__ import annotations

import os
import re
import reprlib
from pathlib import Path
from typing import Any

import yaml

from yolojob.api.reasons import Reason
from yolojob.api.task import Task
from yolojob_trainer.data import class_folders
from yolojob_trainer.data.dataset_description import MAX_CLASSES, MAX_KEYPOINTS, DatasetDescription, Split
from yolojob_trainer.data.dataset_folders import folders_of
from yolojob_trainer.data.untrusted import integer, is_path
from yolojob_trainer.errors import BadInput

MAX_CONFIG_BYTES = 10 << 20
LISTED_FILES = 10
"""Files that an error message lists."""
MASKS = "masks"
"""Ultralytics' folder of masks, if the data file names none."""
SMALLEST, LARGEST = 1e-6, 1e6
"""Bounds of the sizes and scales in a data file: single precision has room for their products."""
IGNORED_PIXEL = 255
"""Class id of the pixels of a mask that do not count."""
MAX_MASK_CLASSES = IGNORED_PIXEL - 1
"""One of the ids of a byte is the background of polygons."""


def describe(
    folder: Path, config: str | Path, split: str = "val", boundary: Path | None = None, task: Task = Task.DETECT
) -> DatasetDescription:
    """Read and check the data file of a dataset; for a classification, the folders of its classes.

    Args:
        folder: the dataset.
        config: path of the data file below the folder. If it is not there, a folder further down is searched. A Path
            is a data file of Ultralytics' own.
        split: the split for validation. Other splits than this and `train` need not exist.
        boundary: see `link_boundary`.
        task: of the training.

    Raises:
        BadInput: the message names the key and what is wrong with it.
    """
    if task is Task.CLASSIFY:
        return class_folders.describe(folder.resolve(), split, boundary)
    return _DataFile(folder, config, boundary, task).describe(split)


_REPR = reprlib.Repr()
"""Limits what it shows of nested values, which YAML can make huge by naming a value many times."""
_REPR.maxstring = _REPR.maxother = 100


class _DataFile:
    """The data file of a dataset."""

    def __init__(self, folder: Path, config: str | Path, boundary: Path | None, task: Task) -> None:
        """
        Args:
            folder: the dataset.
            config: see `describe`.
            boundary: see `link_boundary`.
            task: of the training.

        Raises:
            BadInput: it does not exist, or is not a YAML mapping.
        """
        self._folder = folder.resolve()
        self._boundary, self._task = boundary, task
        self._path = config if isinstance(config, Path) else self._find(config)
        self._content = self._read()
        self._bases = self._find_bases()

    def _find(self, config: str) -> Path:
        path = _find_config(self._folder, config)
        if self._boundary and not path.resolve().is_relative_to(self._boundary):
            raise BadInput(
                Reason.INVALID_DATASET,
                f"spec.dataset: {path}: is a link that leads out of the volume; copy the file into it",
            )
        return path

    def describe(self, split: str) -> DatasetDescription:
        """See the function of the same name."""
        content = self._content
        if "val" not in content and "validation" in content:
            content["val"] = content["validation"]
        return DatasetDescription(
            names=self._names(),
            splits={name: self._split(name) for name in dict.fromkeys(("train", split))},
            channels=self._channels(),
            name=self._path.stem,
            settings=self._settings(),
        )

    def _error(self, message: str) -> BadInput:
        return BadInput(Reason.INVALID_DATASET, f"spec.dataset: {self._path}: {message}")

    def _read(self) -> dict[str, Any]:
        try:
            if self._path.stat().st_size > MAX_CONFIG_BYTES:
                raise self._error(f"is larger than {MAX_CONFIG_BYTES >> 20} MiB")
            content = yaml.safe_load(self._path.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise self._error(f"cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise self._error("is not UTF-8 text; save it as UTF-8") from None
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            # Only the place: the file may be somebody else's, and the message ends up in the job's status.
            mark = getattr(error, "problem_mark", None)
            problem = getattr(error, "problem", None) or type(error).__name__
            raise self._error(f"is not valid YAML{f' in line {mark.line + 1}' if mark else ''}: {problem}") from None
        if not isinstance(content, dict):
            raise self._error("must be a mapping with train, val and names")
        return content

    def _channels(self) -> int:
        channels = integer(self._content.get("channels", 3))
        if channels not in (1, 3):
            raise self._error(f"channels: {self._content['channels']!r}: must be 1 or 3")
        return channels

    def _settings(self) -> dict[str, Any]:
        """Return the settings of the task."""
        match self._task:
            case Task.SEMANTIC:
                return self._masks()
            case Task.DEPTH:
                return self._depths()
        return self._keypoints()

    def _masks(self) -> dict[str, Any]:
        """Return the settings of masks. Without a folder of masks they are drawn from polygons."""
        if len(self._names()) > MAX_MASK_CLASSES:
            raise self._error(f"names: {len(self._names())} classes: a mask has at most {MAX_MASK_CLASSES}")
        folder = self._content.get("masks_dir")
        if folder is None and (self._bases[0] / MASKS).is_dir():  # as Ultralytics does
            folder = MASKS
        if folder is None:
            return {}
        if not isinstance(folder, str) or not re.fullmatch(r"[^/\\\0]{1,255}", folder) or folder in (".", ".."):
            raise self._error(f"masks_dir: {_short(folder)}: must be the name of the folder that stands for images")
        settings: dict[str, Any] = {"masks_dir": folder}
        mapping = self._content.get("label_mapping")
        if mapping is not None:
            settings["label_mapping"] = self._label_mapping(mapping)
        return settings

    def _label_mapping(self, mapping: Any) -> dict[int, int]:
        if not isinstance(mapping, dict):
            raise self._error(f"label_mapping: {_short(mapping)}: must map the ids of masks to class ids")
        ids = {
            integer(key): IGNORED_PIXEL if value in (None, "ignore_label") else integer(value)
            for key, value in mapping.items()
        }
        checked = {k: v for k, v in ids.items() if k is not None and v is not None and 0 <= v <= IGNORED_PIXEL}
        if len(checked) != len(mapping):
            raise self._error(
                f"label_mapping: {_short(mapping)}: must map integers to class ids from 0, or to ignore_label"
            )
        return checked

    def _depths(self) -> dict[str, Any]:
        """Return the settings of maps of depth."""
        settings = {}
        for key in ("depth_scale", "max_depth"):
            value = self._content.get(key)
            if value is not None and not _is_positive(value):
                raise self._error(f"{key}: {_short(value)}: must be a positive number")
            if value is not None:
                settings[key] = float(value)
        return settings

    def _keypoints(self) -> dict[str, Any]:
        """Return the settings of key points; empty without any."""
        shape = self._keypoint_shape()
        if shape is None and self._task is Task.POSE:
            raise self._error(
                "kpt_shape: is missing: a training of poses needs [number of key points, 2 or 3], such as [17, 3]"
            )
        if shape is None:
            return {}
        count = shape[0]
        settings: dict[str, Any] = {"kpt_shape": list(shape)}
        if self._task is not Task.POSE:  # which needs no more than the length of a row
            return settings
        flipped = self._content.get("flip_idx")
        if flipped:
            numbers = [integer(value) for value in flipped] if isinstance(flipped, list) else []
            if sorted(number for number in numbers if number is not None) != list(range(count)):
                raise self._error(f"flip_idx: {_short(flipped)}: must name each key point from 0 to {count - 1} once")
            settings["flip_idx"] = numbers
        if sigmas := self._content.get("kpt_oks_sigmas"):
            if not (isinstance(sigmas, list) and len(sigmas) == count and all(_is_positive(value) for value in sigmas)):
                raise self._error(f"kpt_oks_sigmas: {_short(sigmas)}: must be {count} positive numbers")
            settings["kpt_oks_sigmas"] = [float(value) for value in sigmas]
        if names := self._content.get("kpt_names"):
            settings["kpt_names"] = self._keypoint_names(names, count)
        return settings

    def _keypoint_names(self, names: Any, count: int) -> dict[int, list[str]]:
        by_class = {integer(key): value for key, value in names.items()} if isinstance(names, dict) else {}
        lists = all(
            isinstance(value, list) and len(value) == count and all(_is_text(name) for name in value)
            for value in by_class.values()
        )
        if not by_class or None in by_class or not lists:
            raise self._error(f"kpt_names: {_short(names)}: must have a list of {count} names for each class id")
        return {key: [str(name) for name in value] for key, value in by_class.items() if key is not None}

    def _keypoint_shape(self) -> tuple[int, int] | None:
        shape = self._content.get("kpt_shape")
        if shape is None:
            return None
        numbers = [integer(value) for value in shape] if isinstance(shape, list) else []
        match numbers:
            case [int(count), 2 | 3 as values] if 0 < count <= MAX_KEYPOINTS:
                return count, values
        raise self._error(f"kpt_shape: {_short(shape)}: must be [number of key points, 2 or 3]")

    def _names(self) -> dict[int, str]:
        content = self._content
        names, count = content.get("names"), integer(content.get("nc"))
        if names is None and self._task is Task.DEPTH:
            return {0: "depth"}
        if names is None and count is not None and 0 < count <= MAX_CLASSES:
            names = [f"class_{i}" for i in range(count)]
        if isinstance(names, list):
            names = dict(enumerate(names))
        if not isinstance(names, dict) or not names:
            raise self._error("names: must list the classes")
        by_id = {integer(key): name for key, name in names.items()}
        if len(by_id) != len(names) or set(by_id) != set(range(len(names))):
            raise self._error(f"names: class ids must be 0 to {len(names) - 1}, each once")
        if content.get("nc") is not None and count != len(names):
            raise self._error(f"nc: {content['nc']!r}, but names has {len(names)} classes")
        if not all(_is_text(name) for name in by_id.values()):
            raise self._error("names: a name must be a text or a number")
        return {i: str(by_id[i]) for i in range(len(names))}

    # --- paths ------------------------------------------------------------------------------------------------------

    def _find_bases(self) -> list[Path]:
        """Return the folders that the paths of the splits may be relative to, in order of precedence.

        Ultralytics resolves them below `path`, and without it below the folder of the data file. Exporters also write
        paths below the dataset's top folder, and `path` as it is on their own machine.
        """
        parents = [self._path.parent, self._folder]
        path = self._content.get("path")
        declared = [parent / path for parent in parents] if isinstance(path, str) and is_path(path) else []
        bases = [Path(os.path.normpath(base)) for base in [*declared, *parents]]
        return list(dict.fromkeys(base for base in bases if base.is_dir() and base.is_relative_to(self._folder)))

    def _contains(self, path: Path) -> bool:
        """Return whether a normalised path is in the dataset: as written, or after links on the way to the dataset."""
        return path.is_relative_to(self._folder) or path.resolve().is_relative_to(self._folder)

    def _split(self, name: str) -> Split:
        paths = self._content.get(name)
        if paths in (None, "", []):
            raise self._error(f"{name}: is missing")
        split = Split()
        for text in paths if isinstance(paths, list) else [paths]:
            path = self._split_path(name, text)
            if path.is_dir():
                split.folders.append(path)
            else:
                split.images.extend(self._listed_images(name, path))
        if not split.folders and not split.images:
            raise self._error(f"{name}: {paths}: lists no images")
        return split

    def _split_path(self, split: str, text: Any) -> Path:
        if not isinstance(text, str) or not text.strip():
            raise self._error(f"{split}: must be a path, or a list of paths")
        if not is_path(text):
            raise self._error(f"{split}: {text[:200]!r} is too long for a path, or contains a control character")
        text = text.strip().replace("\\", "/")
        # Some exporters write "../train/images" for a folder beside the data file.
        spellings = [text, text.lstrip("./")]
        candidates = [Path(os.path.normpath(base / spelling)) for spelling in spellings for base in self._bases]
        inside = [path for path in candidates if self._contains(path)]
        if not inside:
            raise self._error(f"{split}: {text} leads out of the dataset")
        path = next((path for path in inside if path.exists()), None)
        if path is None:
            raise self._error(f"{split}: {text}: {inside[0]} does not exist")
        if self._boundary and not path.resolve().is_relative_to(self._boundary):
            raise self._error(
                f"{split}: {text}: is a link to {path.resolve()}, which is outside of the volume; copy the data into it"
            )
        return path

    def _listed_images(self, split: str, path: Path) -> list[Path]:
        """Return the images that a text file lists, as absolute paths.

        Raises:
            BadInput: a line leads out of the dataset, or the file is not text.
        """
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError:
            raise self._error(f"{split}: {path} is not a text file that lists images") from None
        return [self._listed_image(split, path, line.strip()) for line in lines if line.strip()]

    def _listed_image(self, split: str, listing: Path, line: str) -> Path:
        if len(line.splitlines()) != 1 or not is_path(line):
            # Ultralytics would read the parts as paths of their own.
            raise self._error(
                f"{split}: {listing}: {line[:200]!r} is too long for a path, or contains a control character"
            )
        text = line.replace("\\", "/")
        candidates = [Path(os.path.normpath(base / text)) for base in dict.fromkeys([listing.parent, *self._bases])]
        inside = [path for path in candidates if self._contains(path)]
        if not inside:
            raise self._error(
                f"{split}: {listing}: {line[:200]} leads out of the dataset; list paths as ./images/a.jpg"
            )
        return next((path for path in inside if path.exists()), inside[0])


def _short(value: Any) -> str:
    """Return a value from a data file for a message."""
    return _REPR.repr(value)[:200]


def _is_text(value: Any) -> bool:
    """Return whether a value is a text or a number. Nested values may be huge: YAML can name a value many times."""
    return isinstance(value, str | int | float)


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and SMALLEST <= value <= LARGEST


def _find_config(folder: Path, config: str) -> Path:
    """Return the path of the data file.

    Raises:
        BadInput: it does not exist, or several folders have one.
    """
    if (folder / config).is_file():
        return folder / config
    found = [path / config for path in folders_of(folder, follow_links=True) if (path / config).is_file()]
    if len(found) == 1:
        return found[0]
    field_name = f"spec.dataset.config: {config}"
    if found:
        listed = ", ".join(str(path.relative_to(folder)) for path in found[:LISTED_FILES])
        raise BadInput(Reason.DATASET_NOT_FOUND, f"{field_name}: exists more than once in {folder}; name one: {listed}")
    listed = ", ".join(data_files(folder)[:LISTED_FILES]) or "no YAML file at all"
    raise BadInput(Reason.DATASET_NOT_FOUND, f"{field_name}: not in {folder}; there is {listed}")


def data_files(folder: Path) -> list[str]:
    """Return the YAML files of a dataset, relative to its folder."""
    folders = folders_of(folder, follow_links=True)
    return sorted(str(path.relative_to(folder)) for parent in folders for path in parent.glob("*.y*ml"))
