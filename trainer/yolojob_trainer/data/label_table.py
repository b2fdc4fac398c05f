"""Holds the labels and file names of a dataset in a few arrays.

Upstream keeps a dictionary for each image. A process that reads a Python object writes its reference count, and so gets
a copy of the page: with a million images each loader process would grow by a gigabyte. The content of an array has no
reference counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray


class Texts(Sequence[str]):
    """Texts, one after the other."""

    def __init__(self, texts: Sequence[str]) -> None:
        encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)
        self._ends = np.cumsum([0, *map(len, encoded)])

    def digest(self) -> str:
        """Return a hash of all texts."""
        return hashlib.sha256(self._bytes.tobytes() + self._ends.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, i: int) -> str: ...

    @overload
    def __getitem__(self, i: slice) -> list[str]: ...

    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        i = range(len(self))[i]
        return self._bytes[self._ends[i] : self._ends[i + 1]].tobytes().decode("utf-8", "surrogateescape")


class NpyFiles(Sequence[Path]):
    """The file beside each image in which `cache: disk` keeps its pixels."""

    def __init__(self, images: Sequence[str]) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    @overload
    def __getitem__(self, i: int) -> Path: ...

    @overload
    def __getitem__(self, i: slice) -> list[Path]: ...

    def __getitem__(self, i: int | slice) -> Path | list[Path]:
        if isinstance(i, slice):
            return [Path(image).with_suffix(".npy") for image in self._images[i]]
        return Path(self._images[i]).with_suffix(".npy")


class LabelTable(Sequence[dict[str, Any]]):
    """The labels of all images. An item is a new dictionary, as upstream's scan makes it, with views of the arrays."""

    def __init__(self, labels: Sequence[dict[str, Any]]) -> None:
        """
        Args:
            labels: of upstream's dataset; with a shape for each image, or for none.
        """
        self.files = Texts([label["im_file"] for label in labels])
        self._shapes = np.array([label["shape"] for label in labels if "shape" in label], np.int32).reshape(-1, 2)
        self._boxes = _joined([np.hstack([label["cls"], label["bboxes"]]) for label in labels], (5,))
        self._box_ends = _ends(label["cls"] for label in labels)
        polygons = [np.asarray(points, np.float32) for label in labels for points in label["segments"]]
        self._points, self._point_ends = _joined(polygons, (2,)), _ends(polygons)
        self._polygon_ends = _ends(label["segments"] for label in labels)
        keypoints = [label["keypoints"] for label in labels]
        has_keypoints = bool(keypoints) and keypoints[0] is not None
        self._keypoints = _joined(keypoints, keypoints[0].shape[1:]) if has_keypoints else None

    def __len__(self) -> int:
        return len(self.files)

    @overload
    def __getitem__(self, i: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, i: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, i: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        i = range(len(self))[i]
        mine = slice(self._box_ends[i], self._box_ends[i + 1])
        first, last = self._polygon_ends[i], self._polygon_ends[i + 1]
        label = {
            "im_file": self.files[i],
            "cls": self._boxes[mine, :1],
            "bboxes": self._boxes[mine, 1:],
            "segments": [self._points[self._point_ends[k] : self._point_ends[k + 1]] for k in range(first, last)],
            "keypoints": None if self._keypoints is None else self._keypoints[mine],
            "normalized": True,
            "bbox_format": "xywh",
        }
        return {**label, "shape": self.shape(i)} if len(self._shapes) else label

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))

    def shape(self, i: int) -> tuple[int, int]:
        """Return (height, width) of an image's file."""
        height, width = self._shapes[i].tolist()
        return height, width

    def set_shape(self, i: int, shape: tuple[int, int]) -> None:
        """Replace the shape of an image's file."""
        self._shapes[i] = shape

    @property
    def labelled(self) -> int:
        """Number of images with labels."""
        return int(np.count_nonzero(np.diff(self._box_ends)))


def _joined(parts: list[Any], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return arrays of any length, each item of this shape, as one array."""
    return np.concatenate([np.zeros((0, *shape), np.float32), *parts], dtype=np.float32)


def _ends(parts: Any) -> NDArray[np.int64]:
    return np.cumsum([0, *map(len, parts)])
