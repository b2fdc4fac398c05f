"""Upstream's validators, whose ranks exchange arrays and JSON instead of pickles."""

from __future__ import annotations

import io
import json
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from ultralytics.models.yolo.classify import ClassificationValidator
from ultralytics.models.yolo.depth import DepthValidator
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.models.yolo.obb import OBBValidator
from ultralytics.models.yolo.pose import PoseValidator
from ultralytics.models.yolo.segment import SegmentationValidator
from ultralytics.models.yolo.semantic import SemanticSegmentationValidator

from yolojob_trainer.distributed.world import World

IMAGE_METRICS, LISTS = JSON_MEMBERS = "imageMetrics", "lists"
"""Members of a rank's message that are JSON; all others are arrays of statistics."""
CURVES = ("box", "seg", "pose")
"""Parts of upstream's metrics, each with figures for each image."""


class GatheredStatistics(ABC):
    """Gathers the statistics of all ranks on rank 0, but never runs code that a peer sends.

    A base of upstream's validators, in front of the original.
    """

    metrics: Any
    confusion_matrix: Any
    dataloader: Any
    args: Any
    seen: int

    def __init__(self, world: World, *args: Any, **kwargs: Any) -> None:
        """
        Args:
            world: connected.
            args: of upstream's validator.
            kwargs: of upstream's validator.
        """
        super().__init__(*args, **kwargs)
        self._world = world

    def gather_stats(self) -> None:
        if self._world.world_size == 1:
            return
        buffer = io.BytesIO()
        np.savez(buffer, **self._statistics())
        messages = self._world.gather(buffer.getvalue())
        if not self._world.is_main:
            self._clear()
            return
        self._merge([_decode(message) for message in messages])
        self.seen = len(self.dataloader.dataset)

    @abstractmethod
    def _statistics(self) -> dict[str, Any]:
        """Return the statistics of this rank as arrays. Those whose names are in JSON_MEMBERS hold JSON."""

    @abstractmethod
    def _merge(self, ranks: list[dict[str, Any]]) -> None:
        """Set the statistics to those of all ranks, in rank order."""

    def _clear(self) -> None:
        """Drop the statistics of this rank, which rank 0 has received."""
        self.metrics.clear_stats()


class ObjectStatistics(GatheredStatistics):
    """Of boxes, masks and poses."""

    jdict: list[Any]
    gdict: dict[str, list[Any]]
    pred_counts: list[Any]
    build_gdict: bool

    @property
    def _curves(self) -> list[Any]:
        return [getattr(self.metrics, name) for name in CURVES if hasattr(self.metrics, name)]

    def _clear(self) -> None:
        super()._clear()
        self.jdict = []
        for part in self._curves:
            part.clear_image_metrics()

    def _statistics(self) -> dict[str, Any]:
        arrays = {name: np.concatenate(parts) for name, parts in self.metrics.stats.items() if parts}
        lists = {"jdict": self.jdict, "gdict": self.gdict if self.build_gdict else None, "counts": self.pred_counts}
        if self.args.plots:
            arrays["confusionMatrix"] = np.asarray(self.confusion_matrix.matrix)
        arrays[IMAGE_METRICS] = _json_array([part.image_metrics for part in self._curves])
        arrays[LISTS] = _json_array(lists)
        return arrays

    def _merge(self, ranks: list[dict[str, Any]]) -> None:
        self.metrics.stats = {name: [rank[name] for rank in ranks if name in rank] for name in self.metrics.stats}
        lists = [rank[LISTS] for rank in ranks]
        self.jdict = [entry for one in lists for entry in one["jdict"]]
        self.pred_counts = [count for one in lists for count in one["counts"]]
        if self.build_gdict:
            for key in ("images", "annotations"):
                self.gdict[key] = [entry for one in lists for entry in one["gdict"][key]]
        for i, part in enumerate(self._curves):
            part.clear_image_metrics()
            for rank in ranks:
                part.image_metrics.update(rank[IMAGE_METRICS][i])
        if self.args.plots:
            self.confusion_matrix.matrix = np.sum([rank["confusionMatrix"] for rank in ranks], axis=0)


def _json_array(value: Any) -> Any:
    """Return JSON as an array of bytes. Numbers of NumPy become plain ones."""
    return np.frombuffer(json.dumps(value, default=lambda number: number.item()).encode(), np.uint8)


def _decode(message: bytes) -> dict[str, Any]:
    """Return the arrays and the JSON of a rank.

    Raises:
        ValueError: the message contains anything else.
    """
    with np.load(io.BytesIO(message), allow_pickle=False) as arrays:
        content: dict[str, Any] = {name: arrays[name] for name in arrays.files}
    return {**content, **{name: json.loads(content[name].tobytes()) for name in JSON_MEMBERS if name in content}}


class BoxValidator(ObjectStatistics, DetectionValidator):  # type: ignore[misc]
    """Validates boxes."""


class InstanceMaskValidator(ObjectStatistics, SegmentationValidator):  # type: ignore[misc]
    """Validates boxes and masks."""


class KeypointValidator(ObjectStatistics, PoseValidator):  # type: ignore[misc]
    """Validates boxes and key points."""


class RotatedBoxValidator(ObjectStatistics, OBBValidator):  # type: ignore[misc]
    """Validates oriented boxes."""


class ClassValidator(GatheredStatistics, ClassificationValidator):  # type: ignore[misc]
    """Validates the classes of images."""

    def _statistics(self) -> dict[str, Any]:
        parts = {"predictions": self.pred, "targets": self.targets}
        return {name: torch.cat(tensors).numpy() for name, tensors in parts.items() if tensors}

    def _merge(self, ranks: list[dict[str, Any]]) -> None:
        self.pred, self.targets = (
            [torch.from_numpy(rank[name]) for rank in ranks if name in rank] for name in ("predictions", "targets")
        )

    def _clear(self) -> None:
        self.pred, self.targets = [], []


class ClassMaskValidator(GatheredStatistics, SemanticSegmentationValidator):  # type: ignore[misc]
    """Validates the classes of pixels."""

    def _statistics(self) -> dict[str, Any]:
        matrix = self.metrics.matrix
        images = np.asarray(self.metrics.nt_per_image)
        return {"images": images, **({} if matrix is None else {"matrix": matrix.cpu().numpy()})}

    def _merge(self, ranks: list[dict[str, Any]]) -> None:
        matrices = [torch.from_numpy(rank["matrix"]) for rank in ranks if "matrix" in rank]
        self.metrics.matrix = torch.stack(matrices).sum(0).to(self.device) if matrices else None
        self.metrics.nt_per_image = np.sum([rank["images"] for rank in ranks], axis=0)


class DepthMapValidator(GatheredStatistics, DepthValidator):  # type: ignore[misc]
    """Validates depths."""

    def _statistics(self) -> dict[str, Any]:
        totals = self.metrics._totals  # noqa: SLF001 - sums over images, which upstream's gather_stats reads, too
        count = np.asarray(float(self.metrics._count))  # noqa: SLF001
        return {"count": count, **({} if totals is None else {"totals": totals.cpu().numpy()})}

    def _merge(self, ranks: list[dict[str, Any]]) -> None:
        totals = [torch.from_numpy(rank["totals"]) for rank in ranks if "totals" in rank]
        self.metrics._totals = torch.stack(totals).sum(0).to(self.device) if totals else None  # noqa: SLF001
        self.metrics._count = float(sum(rank["count"] for rank in ranks))  # noqa: SLF001
