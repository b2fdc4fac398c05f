"""From the data set that a job names to an Ultralytics data file of our own making.

A data set is data. Its YAML is read by us, field by field; a `download:` in it is never run, its paths stay inside of it,
and what Ultralytics gets to see is a file that we wrote.
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
from yolojob_trainer.data.object_store import Remote
from yolojob_trainer.data.staging import Progress, Stage
from yolojob_trainer.errors import BadInput

SPLITS = ("train", "val", "test")
MAX_CLASSES = 100_000


def locate(dataset: Dataset, *, cache: Path, volumes: Path, progress: Progress) -> Path:
    """The folder of the data set on this node; fetched, unpacked or written on first use.

    Raises:
        BadInput: it is not there, may not be read, is unsafe, or does not fit.
        Unavailable: its storage does not answer.
    """
    uri = dataset.uri
    stage = Stage(cache / "datasets", progress, "spec.dataset.uri")
    if uri.scheme == "builtin":
        return stage.make(f"digits-v{builtin_digits.VERSION}", builtin_digits.write)
    if uri.is_remote:
        return archive.content_root(stage.fetch(Remote(str(uri), "spec.dataset.uri")), dataset.config)
    path = uri.under(volumes).resolve()
    if path.is_dir():
        return path
    if path.is_file():
        return archive.content_root(stage.unpack(path), dataset.config)
    raise BadInput(Reason.DATASET_NOT_FOUND, f"spec.dataset.uri: {uri}: there is no folder or archive {path}")


def describe(folder: Path, config: str) -> dict[str, Any]:
    """The data file's own words, checked: `names`, the splits as absolute paths, `channels`.

    Raises:
        BadInput: names what is wrong with which key.
    """
    path = folder / config

    def bad(message: str) -> BadInput:
        return BadInput(Reason.INVALID_DATASET, f"spec.dataset: {path}: {message}")

    try:
        if path.stat().st_size > 10 << 20:
            raise bad("is larger than 10 MiB")
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError:
        found = ", ".join(sorted(p.name for p in folder.glob("*.y*ml"))) or "no YAML file at all"
        raise BadInput(
            Reason.DATASET_NOT_FOUND, f"spec.dataset.config: {config}: not in {folder}; there is {found}"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise bad(f"is no YAML: {error}") from None
    if not isinstance(content, dict):
        raise bad("must be a mapping with train, val and names")
    root = folder
    if isinstance(content.get("path"), str) and (folder / content["path"]).is_dir():
        root = (folder / content["path"]).resolve()
        if not root.is_relative_to(folder.resolve()):
            root = folder  # somebody else's absolute path: the data set is where the job says it is
    out: dict[str, Any] = {"names": _names(content, bad), "channels": content.get("channels", 3)}
    if out["channels"] not in (1, 3):
        raise bad(f"channels: {out['channels']!r}: must be 1 or 3")
    if "val" not in content and "validation" in content:
        content["val"] = content["validation"]
    for split in SPLITS:
        if content.get(split) is None:
            if split == "test":
                continue
            raise bad(f"{split}: is missing")
        out[split] = [str(_inside(root, part, split, bad)) for part in _list(content[split])]
    return out


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _names(content: dict[str, Any], bad: Any) -> dict[int, str]:
    names = content.get("names")
    if names is None and isinstance(content.get("nc"), int) and 0 < content["nc"] <= MAX_CLASSES:
        names = [f"class_{i}" for i in range(content["nc"])]
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        raise bad("names: must list the classes")
    if sorted(names, key=str) != sorted(range(len(names)), key=str):
        raise bad(f"names: class ids must be 0 to {len(names) - 1}, each once")
    if "nc" in content and content["nc"] != len(names):
        raise bad(f"nc: {content['nc']!r}, but names has {len(names)} classes")
    return {i: str(names[i]) for i in range(len(names))}


def _inside(root: Path, part: Any, split: str, bad: Any) -> Path:
    if not isinstance(part, str) or not part:
        raise bad(f"{split}: must be a path, or a list of paths")
    path = (root / part).resolve()
    if not path.is_relative_to(root.resolve()):
        path = (root / part.lstrip("./")).resolve()  # "../train/images", as some exporters write it
    if not path.is_relative_to(root.resolve()):
        raise bad(f"{split}: {part} leads out of the data set")
    if not path.exists():
        raise bad(f"{split}: {part}: there is no {path}")
    if path.is_file():
        _check_list(root.resolve(), path, split, bad)
    return path


def _check_list(root: Path, path: Path, split: str, bad: Any) -> None:
    """A text file that lists images must list those of the data set."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise bad(f"{split}: {path} is no text file that lists images") from None
    for line in lines:
        image = Path(os.path.normpath(path.parent / line.strip()))
        if line.strip() and not image.is_relative_to(root):
            raise bad(f"{split}: {path}: {line.strip()[:200]} leads out of the data set; list paths as ./images/a.jpg")


def write_config(description: dict[str, Any], folder: Path) -> Path:
    """Write the data file that Ultralytics reads; its name follows from its content."""
    text = yaml.safe_dump(description, sort_keys=True)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"data-{hashlib.sha256(text.encode()).hexdigest()[:16]}.yaml"
    if not path.exists():
        with tempfile.NamedTemporaryFile("w", dir=folder, delete=False, encoding="utf-8") as file:
            file.write(text)
        shutil.move(file.name, path)
    return path
