"""Upstream's validator of a detector, whose ranks exchange arrays and JSON instead of pickles."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
from ultralytics.models.yolo.detect import DetectionValidator

from yolojob_trainer.distributed.world import World

IMAGE_METRICS, LISTS = "imageMetrics", "lists"
"""Members of a rank's message that are JSON; all others are arrays of statistics."""


class ArrayValidator(DetectionValidator):  # type: ignore[misc]
    """Gathers the statistics of all ranks on rank 0 as upstream does, but never runs code that a peer sends."""

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
        messages = self._world.gather(self._message())
        if not self._world.is_main:
            self.jdict: list[Any] = []
            self.metrics.clear_stats()
            self.metrics.box.clear_image_metrics()
            return
        self._merge([_decode(message) for message in messages])
        self.seen = len(self.dataloader.dataset)

    def _message(self) -> bytes:
        """Return the statistics of this rank."""
        arrays = {name: np.concatenate(parts) for name, parts in self.metrics.stats.items() if parts}
        lists = {"jdict": self.jdict, "gdict": self.gdict if self.build_gdict else None, "counts": self.pred_counts}
        if self.args.plots:
            arrays["confusionMatrix"] = np.asarray(self.confusion_matrix.matrix)
        arrays[IMAGE_METRICS] = _json_array(self.metrics.box.image_metrics)
        arrays[LISTS] = _json_array(lists)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()

    def _merge(self, ranks: list[dict[str, Any]]) -> None:
        """Set the statistics to those of all ranks, in rank order."""
        self.metrics.stats = {name: [rank[name] for rank in ranks if name in rank] for name in self.metrics.stats}
        lists = [rank[LISTS] for rank in ranks]
        self.jdict = [entry for one in lists for entry in one["jdict"]]
        self.pred_counts = [count for one in lists for count in one["counts"]]
        if self.build_gdict:
            for key in ("images", "annotations"):
                self.gdict[key] = [entry for one in lists for entry in one["gdict"][key]]
        self.metrics.box.clear_image_metrics()
        for rank in ranks:
            self.metrics.box.image_metrics.update(rank[IMAGE_METRICS])
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
    return {**content, **{name: json.loads(content[name].tobytes()) for name in (IMAGE_METRICS, LISTS)}}
