"""Which images a mosaic takes: those that its shard of the global batch has loaded last.

Ultralytics takes them from a buffer of recently loaded images, so that a mosaic decodes one image instead of four. Its
buffer depends on the process that loads. Here the images depend only on seed, epoch and sample, so that a training does
not depend on the number of ranks or loader processes, and resumes exactly.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from yolojob_trainer.data.sample_order import SampleOrder

BATCHES, MAX_IMAGES = 8, 1000
"""Ultralytics' buffer holds 8 batches, but at most 1000 images: `BaseDataset.max_buffer_length`."""
MIN_IMAGES = 128
"""Of a shard, because a shard of a few images would combine the same ones again and again."""
_BEFORE_FIRST_EPOCH = 2**32 - 1
"""Number of the imaginary epoch whose images fill the windows of the first epoch's first samples."""
_KEPT_EPOCHS = 3
"""Orders of epochs in memory: prefetching crosses the end of an epoch, and a window reaches into the epoch before."""


class MosaicWindow:
    """The last images of the shard of each sample."""

    def __init__(self, order: SampleOrder) -> None:
        """
        Args:
            order: of the samples, with the largest number of ranks that the job may have as shards.
        """
        self.order = order
        sizes = [order.batch // order.shards + (s < order.batch % order.shards) for s in range(order.shards)]
        self._bounds = np.cumsum([0, *sizes])
        self._epochs: dict[int, tuple[NDArray[np.int32], list[NDArray[np.int32]]]] = {}

    @property
    def length(self) -> int:
        """Number of images in the window of a shard, unless the shard has fewer in an epoch."""
        return min(max(BATCHES * -(-self.order.batch // self.order.shards), MIN_IMAGES), MAX_IMAGES)

    def images(self, epoch: int, number: int) -> list[int]:
        """Return the last images that the shard of this sample has loaded, oldest first; the last one is its own."""
        positions, shards = self._epoch(epoch)
        shard, index = self._place(int(positions[number]))
        current = shards[shard][: index + 1]
        missing = self.length - len(current)
        if missing > 0:
            before = self._epoch(epoch - 1 if epoch else _BEFORE_FIRST_EPOCH)[1][shard]
            current = np.concatenate([before[len(before) - min(missing, len(before)) :], current])
        return current[-self.length :].tolist()  # type: ignore[no-any-return]

    def _place(self, position: int) -> tuple[int, int]:
        """Return the shard of a position of the epoch, and its number among the shard's images of the epoch."""
        step, offset = divmod(position, self.order.batch)
        bounds = self._bounds if step < self.order.samples // self.order.batch else self._last_bounds
        shard = int(np.searchsorted(bounds, offset, side="right")) - 1
        full = self._bounds[shard + 1] - self._bounds[shard]
        return shard, int(step * full + offset - bounds[shard])

    @property
    def _last_bounds(self) -> NDArray[np.int64]:
        """Where the shards of the last, smaller batch of an epoch begin and end, as `SampleOrder` splits it."""
        size, shards = self.order.samples % self.order.batch, self.order.shards
        return np.cumsum([0, *(size // shards + (s < size % shards) for s in range(shards))])

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int32], list[NDArray[np.int32]]]:
        """Return the position of each sample, and the samples of each shard in order."""
        if epoch not in self._epochs:
            while len(self._epochs) >= _KEPT_EPOCHS:
                del self._epochs[next(iter(self._epochs))]
            order = self.order.permutation(epoch).astype(np.int32)
            positions = np.empty_like(order)
            positions[order] = np.arange(len(order), dtype=np.int32)
            self._epochs[epoch] = positions, self._shards(order)
        return self._epochs[epoch]

    def _shards(self, order: NDArray[np.int32]) -> list[NDArray[np.int32]]:
        batch = self.order.batch
        full = len(order) // batch
        whole, rest, last = order[: full * batch].reshape(full, batch), order[full * batch :], self._last_bounds
        return [
            np.concatenate([whole[:, self._bounds[s] : self._bounds[s + 1]].ravel(), rest[last[s] : last[s + 1]]])
            for s in range(self.order.shards)
        ]
