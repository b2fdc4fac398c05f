"""Holds the labels and file names of a dataset in a few arrays.

Upstream keeps a dictionary for each image. A process that reads a Python object writes its reference count, and so gets
a copy of the page: with a million images each loader process would grow by a gigabyte. The content of an array has no
reference counts.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from yolojob_trainer.data.label_cache import joined

T = TypeVar("T")
TEXTS = ("mask_file", "mode")
"""Entries of the labels of a semantic segmentation."""


class Items(Sequence[T]):
    """A sequence whose items are made when they are asked for."""

    @abstractmethod
    def item(self, i: int) -> T:
        """Return the item at this index from 0 on."""

    @overload
    def __getitem__(self, i: int) -> T: ...

    @overload
    def __getitem__(self, i: slice) -> list[T]: ...

    def __getitem__(self, i: int | slice) -> T | list[T]:
        chosen = range(len(self))[i]
        return self.item(chosen) if isinstance(chosen, int) else [self.item(k) for k in chosen]


class Texts(Items[str]):
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

    def item(self, i: int) -> str:
        return self._bytes[self._ends[i] : self._ends[i + 1]].tobytes().decode("utf-8", "surrogateescape")


class NpyFiles(Items[Path]):
    """The file beside each image in which `cache: disk` keeps its pixels."""

    def __init__(self, images: Sequence[str]) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def item(self, i: int) -> Path:
        return Path(self._images[i]).with_suffix(".npy")


class LabelTable(Items[dict[str, Any]]):
    """The labels of all images. An item is a new dictionary, as upstream's scan makes it, with views of the arrays."""

    def __init__(self, labels: Sequence[dict[str, Any]]) -> None:
        """
        Args:
            labels: of upstream's dataset; with a shape for each image, or for none.
        """
        self.files = Texts([label["im_file"] for label in labels])
        self._shapes = np.array([label["shape"] for label in labels if "shape" in label], np.int32).reshape(-1, 2)
        self._boxes = joined([np.hstack([label["cls"].reshape(-1, 1), label["bboxes"]]) for label in labels], (5,))
        self._box_ends = _ends(label["cls"] for label in labels)
        polygons = [np.asarray(points, np.float32) for label in labels for points in label["segments"]]
        self._points, self._point_ends = joined(polygons, (2,)), _ends(polygons)
        self._polygon_ends = _ends(label["segments"] for label in labels)
        keypoints: list[Any] = [label.get("keypoints") for label in labels]
        has_keypoints = bool(keypoints) and keypoints[0] is not None
        self._keypoints = joined(keypoints, keypoints[0].shape[1:]) if has_keypoints else None
        present = [key for key in TEXTS if labels and key in labels[0]]
        self._texts = {key: Texts([label[key] for label in labels]) for key in present}

    def __len__(self) -> int:
        return len(self.files)

    def item(self, i: int) -> dict[str, Any]:
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
            **{key: texts[i] for key, texts in self._texts.items()},
        }
        return {**label, "shape": self.shape(i)} if len(self._shapes) else label

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


def _ends(parts: Any) -> NDArray[np.int64]:
    return np.cumsum([0, *map(len, parts)])
