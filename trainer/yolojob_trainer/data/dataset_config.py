"""Turns the dataset of a job into a data file for Ultralytics that this package writes itself.

A dataset is untrusted data. This module reads its YAML file field by field: a `download:` script is never run, and
paths must stay inside the dataset.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import reprlib
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from yolojob.api import uri as uris
from yolojob.api.reasons import Reason
from yolojob.api.spec import Dataset, YoloTrainingJobSpec
from yolojob.api.task import Task
from yolojob.format import printable
from yolojob_trainer.data import builtin_digits, class_folders, official_datasets
from yolojob_trainer.data.dataset_description import MAX_CLASSES, MAX_KEYPOINTS, SEARCH_DEPTH, DatasetDescription, Split
from yolojob_trainer.data.formats import conversion
from yolojob_trainer.data.formats.annotation import ImageFinder, folders_of
from yolojob_trainer.data.object_store import ObjectStore
from yolojob_trainer.data.staging import ProgressCallback, Stage
from yolojob_trainer.errors import BadInput


@dataclass(frozen=True, kw_only=True)
class NodeFolders:
    """Folders of this node."""

    cache: Path
    volumes: Path
    """In which `pvc://CLAIM/PATH` is `CLAIM/PATH`."""


@dataclass(frozen=True, kw_only=True)
class OpenDataset:
    """A dataset on this node."""

    boundary: Path | None
    """Folder that links in it must not leave; None if they may lead anywhere."""
    description: DatasetDescription


DEFAULT_CONFIG = Dataset.model_fields["config"].default
MAX_CONFIG_BYTES = 10 << 20
LOGGED_PARTS = 10
"""Lines in the log about the progress of a conversion."""
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


def locate(dataset: Dataset, *, cache: Path, volumes: Path, progress: ProgressCallback) -> Path:
    """Return the folder of the dataset on this node; it is downloaded, unpacked or written on first use.

    Raises:
        BadInput: it does not exist, access is denied, it is unsafe, or it does not fit.
        Unavailable: its storage does not answer.
    """
    uri = official_datasets.address(dataset.uri)
    stage = Stage(cache / "datasets", progress, "spec.dataset.uri")
    if uri.scheme == "builtin":
        name = f"{uri.location}-v{builtin_digits.DATASET_VERSION}"
        return stage.make(name, builtin_digits.WRITERS[uri.location])
    if uri.is_remote:
        return stage.fetch(ObjectStore(str(uri), "spec.dataset.uri"))
    path = uri.under(volumes).resolve()
    if path.is_dir():
        return path
    if path.suffix.lower() in (".yaml", ".yml"):
        raise BadInput(
            Reason.DATASET_NOT_FOUND,
            f"spec.dataset.uri: {uri}: must be the folder of the dataset; name its data file in spec.dataset.config: "
            f"uri: {str(uri).rpartition('/')[0]}, config: {path.name}",
        )
    if path.is_file():
        return stage.unpack(path)
    raise BadInput(Reason.DATASET_NOT_FOUND, f"spec.dataset.uri: {uri}: there is no folder or archive {path}")


def open_dataset(spec: YoloTrainingJobSpec, folder: Path, task: Task, node: NodeFolders) -> OpenDataset:
    """Describe the dataset of a job. Annotations of COCO and Pascal VOC are converted on first use.

    Args:
        spec: of the job.
        folder: where the dataset is, see `locate`.
        task: of the training.
        node: folders of this node.

    Raises:
        BadInput: it cannot be used.
    """
    uri, config, split = spec.dataset.uri, spec.dataset.config, spec.train.split or "val"
    boundary = link_boundary(spec.dataset, folder, node.volumes)
    if uri.scheme == uris.ULTRALYTICS:
        config = str(official_datasets.data_file(uri.location))
    elif task is not Task.CLASSIFY and config == DEFAULT_CONFIG and not _has_data_file(folder.resolve(), config):
        finder = ImageFinder(root=folder.resolve(), boundary=boundary, field="spec.dataset")
        if conversion.annotation_files(finder.root, task):
            folder, config = _converted(finder, task, split, node.cache), conversion.DATA_FILE
            boundary = None  # all links were checked
    return OpenDataset(boundary=boundary, description=describe(folder, config, split, boundary, task))


def _converted(finder: ImageFinder, task: Task, split: str, cache: Path) -> Path:
    """Return the folder with the converted dataset.

    Raises:
        BadInput: the annotations are not valid, or in no known format.
    """

    def write(target: Path) -> None:
        # In a process of its own: reading a large JSON file holds Python's lock for longer than a heartbeat may wait,
        # and takes several times its size of memory.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            try:
                problem = pool.submit(_convert, finder, task, split, target).result()
            except BrokenProcessPool:
                raise BadInput(
                    Reason.INVALID_DATASET,
                    f"spec.dataset: {finder.root}: the process that converts the annotations was killed: they may need "
                    "more memory than spec.workers.resources allows",
                ) from None
        if problem:
            raise BadInput(Reason.INVALID_DATASET, problem)

    stage = Stage(cache / "datasets", lambda *_: None, "spec.dataset")
    folder = stage.make(f"converted-{conversion.fingerprint(finder.root, task)}-{split}", write)
    _check_links(folder, finder.boundary)
    for line in (folder / conversion.SUMMARY).read_text(encoding="utf-8", errors="replace").splitlines():
        _log(printable(line))
    return folder


def _convert(finder: ImageFinder, task: Task, split: str, target: Path) -> str | None:
    """Convert a dataset; return what is wrong with it."""

    def count(done: int, total: int) -> None:
        if done * LOGGED_PARTS // total > (done - 1) * LOGGED_PARTS // total:
            _log(f"converted {done} of {total} images")

    try:
        annotations = conversion.find(finder, task)
        if annotations is None:
            raise conversion.no_annotations(finder)
        settings = conversion.ConversionSettings(task=task, place=conversion.link, count=count, needed=split)
        conversion.write(annotations, target, finder, settings)
    except BadInput as error:
        return str(error)
    return None


def _check_links(folder: Path, boundary: Path | None) -> None:
    """Check the links of a converted dataset, in each use: the cache, and the volume, may have changed.

    Raises:
        BadInput: a link is not that of an image, or leads out of the volume.
    """
    for path in folder.rglob("*"):
        if not path.is_symlink():
            continue
        real = Path(os.path.realpath(path))  # which, unlike Path.resolve, raises nothing for a circle of links
        is_image = path.is_relative_to(folder / "images") and real.is_file()
        if not is_image or (boundary and not real.is_relative_to(boundary)):
            problem = f"spec.dataset: {path}: leads to {real}, which is no image in the volume; copy the data into it"
            raise BadInput(Reason.INVALID_DATASET, problem)


def _log(line: str) -> None:
    print(f"yolojob: dataset: {line}", file=sys.stderr, flush=True)  # noqa: T201


def link_boundary(dataset: Dataset, folder: Path, volumes: Path) -> Path | None:
    """Return the folder that links in a dataset must not leave; None if they may lead anywhere.

    A claim may link within itself. On the user's own machine everything may be linked.

    Args:
        dataset: of the specification.
        folder: of the dataset on this node.
        volumes: folder of the mounted volumes.
    """
    if dataset.uri.scheme == "file":
        return None
    claim = (volumes / dataset.uri.location).resolve()
    # An archive in a claim is unpacked into the cache.
    return claim if dataset.uri.scheme == "pvc" and folder.resolve().is_relative_to(claim) else folder.resolve()


def describe(
    folder: Path, config: str, split: str = "val", boundary: Path | None = None, task: Task = Task.DETECT
) -> DatasetDescription:
    """Read and check the data file of a dataset; for a classification, the folders of its classes.

    Args:
        folder: the dataset.
        config: path of the data file below the folder. If it is not there, a folder further down is searched. Or a
            file of Ultralytics' own.
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

    def __init__(self, folder: Path, config: str, boundary: Path | None, task: Task) -> None:
        """
        Args:
            folder: the dataset.
            config: path of the data file below the folder.
            boundary: see `link_boundary`.
            task: of the training.

        Raises:
            BadInput: it does not exist, or is not a YAML mapping.
        """
        self._folder = folder.resolve()
        self._boundary, self._task = boundary, task
        self._path = _find_config(self._folder, config)
        self._content = self._read()
        self._bases = self._find_bases()

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
        is_ours = self._path.is_relative_to(official_datasets.DATA_FILES)
        if self._boundary and not is_ours and not self._path.resolve().is_relative_to(self._boundary):
            raise self._error("is a link that leads out of the volume; copy the file into it")
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
        channels = _integer(self._content.get("channels", 3))
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
            _integer(key): IGNORED_PIXEL if value in (None, "ignore_label") else _integer(value)
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
            numbers = [_integer(value) for value in flipped] if isinstance(flipped, list) else []
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
        by_class = {_integer(key): value for key, value in names.items()} if isinstance(names, dict) else {}
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
        numbers = [_integer(value) for value in shape] if isinstance(shape, list) else []
        match numbers:
            case [int(count), 2 | 3 as values] if 0 < count <= MAX_KEYPOINTS:
                return count, values
        raise self._error(f"kpt_shape: {_short(shape)}: must be [number of key points, 2 or 3]")

    def _names(self) -> dict[int, str]:
        content = self._content
        names, count = content.get("names"), _integer(content.get("nc"))
        if names is None and self._task is Task.DEPTH:
            return {0: "depth"}
        if names is None and count is not None and 0 < count <= MAX_CLASSES:
            names = [f"class_{i}" for i in range(count)]
        if isinstance(names, list):
            names = dict(enumerate(names))
        if not isinstance(names, dict) or not names:
            raise self._error("names: must list the classes")
        by_id = {_integer(key): name for key, name in names.items()}
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
        declared = [parent / path for parent in parents] if isinstance(path, str) and _is_path(path) else []
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
        if not _is_path(text):
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
        if len(line.splitlines()) != 1 or not _is_path(line):
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


def _is_path(text: str) -> bool:
    """Return whether the file system accepts a text as a path."""
    return "\0" not in text and len(text.encode()) < 4096 and all(len(p.encode()) <= 255 for p in text.split("/"))


def _integer(value: Any) -> int | None:
    """Return an integer that may be written as text, as Ultralytics reads it; None if it is none."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return int(number) if number.is_integer() else None


def _find_config(folder: Path, config: str) -> Path:
    """Return the path of the data file.

    Raises:
        BadInput: it does not exist, or several folders have one.
    """
    if (folder / config).is_file():
        return folder / config
    patterns = ["/".join(["*"] * depth) for depth in range(1, SEARCH_DEPTH + 1)]
    parents = [path for pattern in patterns for path in sorted(folder.glob(pattern)) if path.is_dir()]
    found = [path / config for path in parents if (path / config).is_file() and "__MACOSX" not in path.parts]
    if len(found) == 1:
        return found[0]
    field_name = f"spec.dataset.config: {config}"
    if found:
        listed = ", ".join(str(path.relative_to(folder)) for path in found[:LISTED_FILES])
        raise BadInput(Reason.DATASET_NOT_FOUND, f"{field_name}: exists more than once in {folder}; name one: {listed}")
    listed = ", ".join(_data_files(folder)[:LISTED_FILES]) or "no YAML file at all"
    raise BadInput(Reason.DATASET_NOT_FOUND, f"{field_name}: not in {folder}; there is {listed}")


def _data_files(folder: Path) -> list[str]:
    """Return the YAML files of a dataset, relative to its folder."""
    return sorted(str(path.relative_to(folder)) for parent in folders_of(folder) for path in parent.glob("*.y*ml"))


def _has_data_file(folder: Path, config: str) -> bool:
    return (folder / config).is_file() or bool(_data_files(folder))
