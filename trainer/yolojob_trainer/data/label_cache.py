"""Stores the scanned labels of a dataset as plain arrays, so that reading a file from a shared folder runs no code.

Upstream stores a pickle. The folder of label caches may be shared by jobs that do not trust each other, so a file is
checked before it is used: only the dataset's own images, and only finite numbers of the right shapes.
"""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from ultralytics.data.dataset import DATASET_CACHE_VERSION

CHECKS_VERSION = 1
"""Of the checks of images in `data.dataset`; raise it when they change."""
FORMAT = f"1 {DATASET_CACHE_VERSION} {CHECKS_VERSION}"
"""Changes with this format, with the scan of Ultralytics, and with the checks of this package."""

MAX_COORDINATE = 1.01
"""Upstream's tolerance for shares of an image."""
Labels = dict[str, Any]
"""The result of upstream's scan: `labels`, `results`, `msgs` and `hash`."""


def write(path: Path, scan: Labels) -> None:
    """Write a scan, atomically. A failure is ignored: the labels are scanned again next time.

    Args:
        path: of the file; its folder exists.
        scan: of upstream's `cache_labels`.
    """
    labels = scan["labels"]
    segments = [np.asarray(points, np.float32) for label in labels for points in label["segments"]]
    keypoints = [label["keypoints"] for label in labels]
    head = {
        "format": FORMAT,
        "hash": scan["hash"],
        "results": [int(value) for value in scan["results"]],
        "msgs": scan["msgs"],
        "files": [label["im_file"] for label in labels],
        "keypoints": None if not keypoints or keypoints[0] is None else list(keypoints[0].shape[1:]),
    }
    arrays = {
        "head": np.frombuffer(json.dumps(head).encode(), np.uint8),
        "shapes": np.array([label["shape"] for label in labels], np.int64).reshape(-1, 2),
        "counts": np.array([len(label["cls"]) for label in labels], np.int64),
        "boxes": joined([np.hstack([label["cls"], label["bboxes"]]) for label in labels], (5,)),
        "segments": np.array([len(label["segments"]) for label in labels], np.int64),
        "points": np.array([len(points) for points in segments], np.int64),
        "polygons": joined(segments, (2,)),
        "keypoints": joined(keypoints if head["keypoints"] else [], tuple(head["keypoints"] or (0, 0))),
    }
    try:
        # A new file with a name that nobody else knows: a link in its place would be followed.
        descriptor, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                np.savez(file, **arrays)
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError:
        return


def read(path: Path, files: list[str], expected_hash: str) -> Labels | None:
    """Read a scan.

    Args:
        path: of the file.
        files: images of the dataset.
        expected_hash: of the dataset's files.

    Returns:
        The scan; None if there is none, or not one of this dataset.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            # `write` compresses nothing, so the file's size bounds the memory that reading it takes.
            _check(all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist()))
        with np.load(path, allow_pickle=False) as arrays:
            return _decode({name: arrays[name] for name in arrays.files}, files, expected_hash)
    except Exception:  # noqa: BLE001 - an untrusted file may raise anything, also MemoryError
        return None


def _decode(arrays: dict[str, Any], files: list[str], expected_hash: str) -> Labels:
    """Return the content of a file.

    Raises:
        ValueError: it is not a scan of this dataset.
    """
    head = json.loads(arrays["head"].tobytes())
    names = head["files"]
    _check(head["format"] == FORMAT and head["hash"] == expected_hash and len(head["results"]) == 5)
    _check(all(type(count) is int and count >= 0 for count in head["results"]))
    _check(len(names) == len(set(names)) and set(names) <= set(files))
    _check(all(isinstance(text, str) for text in head["msgs"]))
    shape = head["keypoints"]
    counts = _lengths(arrays["counts"], len(names))
    segments = _lengths(arrays["segments"], len(names))
    points = _lengths(arrays["points"], int(segments.sum()))
    boxes = _numbers(arrays["boxes"], (int(counts.sum()), 5))
    _check(bool((boxes[:, 0] >= 0).all() and (boxes[:, 0] % 1 == 0).all()))
    _check(bool((np.abs(boxes[:, 1:]) <= MAX_COORDINATE).all()))
    polygons = np.split(_numbers(arrays["polygons"], (int(points.sum()), 2)), np.cumsum(points)[:-1])
    shapes = _numbers(arrays["shapes"], (len(names), 2))
    keypoints = _numbers(arrays["keypoints"], (int(counts.sum()), *shape)) if shape else None
    ends, segment_ends = np.cumsum(counts), np.cumsum(segments)
    labels = []
    for i, name in enumerate(names):
        mine = slice(ends[i] - counts[i], ends[i])
        labels.append(
            {
                "im_file": name,
                "shape": tuple(int(value) for value in shapes[i]),
                "cls": boxes[mine, 0:1],
                "bboxes": boxes[mine, 1:],
                "segments": polygons[segment_ends[i] - segments[i] : segment_ends[i]],
                "keypoints": None if keypoints is None else keypoints[mine],
                "normalized": True,
                "bbox_format": "xywh",
            }
        )
    return {"labels": labels, "results": tuple(head["results"]), "msgs": head["msgs"], "hash": head["hash"]}


def joined(parts: list[Any], shape: tuple[int, ...]) -> Any:
    """Return arrays of any length, each item of this shape, as one array."""
    return np.concatenate([np.zeros((0, *shape), np.float32), *parts]).astype(np.float32)


def _lengths(array: Any, count: int) -> Any:
    """Return an array of `count` lengths.

    Raises:
        ValueError: it is not.
    """
    _check(array.dtype == np.int64 and array.shape == (count,) and bool((array >= 0).all()))
    _check(bool((array < 1 << 40).all()))
    return array


def _numbers(array: Any, shape: tuple[int, ...]) -> Any:
    """Return an array of finite numbers of this shape.

    Raises:
        ValueError: it is not.
    """
    _check(array.dtype.kind in "if" and array.shape == shape and bool(np.isfinite(array).all()))
    return array


def _check(condition: bool) -> None:
    if not condition:
        raise ValueError("not a scan of this dataset")
