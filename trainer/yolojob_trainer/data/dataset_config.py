"""Turns the dataset of a job into a data file for Ultralytics that this package writes itself.

A dataset is untrusted data. This module reads its YAML file field by field: a `download:` script is never run, and
paths must stay inside the dataset.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml

from yolojob.api.reasons import Reason
from yolojob.api.spec import Dataset
from yolojob_trainer.data import archive, builtin_digits
from yolojob_trainer.data.object_store import ObjectStore
from yolojob_trainer.data.staging import ProgressCallback, Stage
from yolojob_trainer.errors import BadInput

SPLITS = ("train", "val", "test")
MAX_CLASSES = 100_000
MAX_CONFIG_BYTES = 10 << 20


def locate(dataset: Dataset, *, cache: Path, volumes: Path, progress: ProgressCallback) -> Path:
    """Return the folder of the dataset on this node; it is downloaded, unpacked or written on first use.

    Raises:
        BadInput: it does not exist, access is denied, it is unsafe, or it does not fit.
        Unavailable: its storage does not answer.
    """
    uri = dataset.uri
    stage = Stage(cache / "datasets", progress, "spec.dataset.uri")
    if uri.scheme == "builtin":
        return stage.make(f"digits-v{builtin_digits.DATASET_VERSION}", builtin_digits.write)
    if uri.is_remote:
        return archive.content_root(stage.fetch(ObjectStore(str(uri), "spec.dataset.uri")), dataset.config)
    path = uri.under(volumes).resolve()
    if path.is_dir():
        return path
    if path.is_file():
        return archive.content_root(stage.unpack(path), dataset.config)
    raise BadInput(Reason.DATASET_NOT_FOUND, f"spec.dataset.uri: {uri}: there is no folder or archive {path}")


def describe(folder: Path, config: str) -> dict[str, Any]:
    """Read and check the data file of a dataset.

    Args:
        folder: the dataset.
        config: path of the data file below the folder.

    Returns:
        `names`, the splits as absolute paths, and `channels`.

    Raises:
        BadInput: the message names the key and what is wrong with it.
    """
    return DatasetConfig(folder, config).describe()


class DatasetConfig:
    """The data file of a dataset."""

    def __init__(self, folder: Path, config: str) -> None:
        """
        Args:
            folder: the dataset.
            config: path of the data file below the folder.

        Raises:
            BadInput: it does not exist, or is not a YAML mapping.
        """
        self._path = folder / config
        self._content = self._read(folder, config)
        self._root = self._find_root(folder)

    def describe(self) -> dict[str, Any]:
        """Return `names`, the splits as absolute paths, and `channels`.

        Raises:
            BadInput: the message names the key and what is wrong with it.
        """
        content = self._content
        description: dict[str, Any] = {"names": self._names(), "channels": content.get("channels", 3)}
        if description["channels"] not in (1, 3):
            raise self._error(f"channels: {description['channels']!r}: must be 1 or 3")
        if "val" not in content and "validation" in content:
            content["val"] = content["validation"]
        for split in SPLITS:
            paths = content.get(split)
            if paths is not None:
                paths = paths if isinstance(paths, list) else [paths]
                description[split] = [str(self._split_path(split, path)) for path in paths]
            elif split != "test":
                raise self._error(f"{split}: is missing")
        return description

    def _error(self, message: str) -> BadInput:
        return BadInput(Reason.INVALID_DATASET, f"spec.dataset: {self._path}: {message}")

    def _read(self, folder: Path, config: str) -> dict[str, Any]:
        try:
            if self._path.stat().st_size > MAX_CONFIG_BYTES:
                raise self._error(f"is larger than {MAX_CONFIG_BYTES >> 20} MiB")
            content = yaml.safe_load(self._path.read_text(encoding="utf-8"))
        except OSError:
            existing = ", ".join(sorted(p.name for p in folder.glob("*.y*ml"))) or "no YAML file at all"
            raise BadInput(
                Reason.DATASET_NOT_FOUND, f"spec.dataset.config: {config}: not in {folder}; there is {existing}"
            ) from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise self._error(f"is not valid YAML: {error}") from None
        if not isinstance(content, dict):
            raise self._error("must be a mapping with train, val and names")
        return content

    def _find_root(self, folder: Path) -> Path:
        """Return the folder that the paths of the splits are relative to."""
        path = self._content.get("path")
        if isinstance(path, str) and (folder / path).is_dir():
            root = (folder / path).resolve()
            if root.is_relative_to(folder.resolve()):
                return root
        return folder  # without `path`, or with an absolute path of another machine

    def _names(self) -> dict[int, str]:
        content = self._content
        names = content.get("names")
        if names is None and isinstance(content.get("nc"), int) and 0 < content["nc"] <= MAX_CLASSES:
            names = [f"class_{i}" for i in range(content["nc"])]
        if isinstance(names, list):
            names = dict(enumerate(names))
        if not isinstance(names, dict) or not names:
            raise self._error("names: must list the classes")
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise self._error(f"names: class ids must be 0 to {len(names) - 1}, each once")
        if "nc" in content and content["nc"] != len(names):
            raise self._error(f"nc: {content['nc']!r}, but names has {len(names)} classes")
        return {i: str(names[i]) for i in range(len(names))}

    def _split_path(self, split: str, text: Any) -> Path:
        if not isinstance(text, str) or not text:
            raise self._error(f"{split}: must be a path, or a list of paths")
        root = self._root.resolve()
        path = (self._root / text).resolve()
        if not path.is_relative_to(root):
            path = (self._root / text.lstrip("./")).resolve()  # some exporters write "../train/images"
        if not path.is_relative_to(root):
            raise self._error(f"{split}: {text} leads out of the dataset")
        if not path.exists():
            raise self._error(f"{split}: {text}: {path} does not exist")
        if path.is_file():
            self._check_image_list(split, path)
        return path

    def _check_image_list(self, split: str, path: Path) -> None:
        """Check that a text file lists only images inside the dataset."""
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError:
            raise self._error(f"{split}: {path} is not a text file that lists images") from None
        root = self._root.resolve()
        for line in lines:
            image = Path(os.path.normpath(path.parent / line.strip()))
            if line.strip() and not image.is_relative_to(root):
                raise self._error(
                    f"{split}: {path}: {line.strip()[:200]} leads out of the dataset; list paths as ./images/a.jpg"
                )


def write_config(description: dict[str, Any], folder: Path) -> Path:
    """Write the data file that Ultralytics reads; its name is a hash of its content.

    Returns:
        Its path below `folder`.
    """
    text = yaml.safe_dump(description, sort_keys=True)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"data-{hashlib.sha256(text.encode()).hexdigest()[:16]}.yaml"
    if not path.exists():
        with tempfile.NamedTemporaryFile("w", dir=folder, delete=False, encoding="utf-8") as file:
            file.write(text)
        shutil.move(file.name, path)
    return path
