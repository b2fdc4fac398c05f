"""Which sample is trained when and by whom: a function of (seed, epoch) alone, whatever the number of workers.

The global batch is cut into `shards`, as many as the job has worker processes at most. A rank takes one shard, or several
one after the other where fewer ranks than shards train: the gradient is the same, up to the order of additions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class SampleOrder:
    """The order of all samples.

    Attributes:
        samples: images in the training set.
        batch: global batch, images.
        shards: parts into which a global batch is cut.
        seed: seed of the permutations.
    """

    samples: int
    batch: int
    shards: int
    seed: int

    @property
    def steps(self) -> int:
        """Global batches of an epoch; the last may be smaller."""
        return -(-self.samples // self.batch)

    def permutation(self, epoch: int) -> NDArray[np.int64]:
        """All samples in the order of this epoch; each once."""
        return np.random.default_rng([self.seed, epoch]).permutation(self.samples)

    def shards_of(self, rank: int, world_size: int) -> range:
        """The shards that a rank takes: neighbours, and as even as can be."""
        base, extra = divmod(self.shards, world_size)
        start = rank * base + min(rank, extra)
        return range(start, start + base + (rank < extra))

    def sizes(self, step: int, rank: int, world_size: int) -> list[int]:
        """Images in each micro-batch of a rank in a step.

        A small last batch may leave a rank without a sample. It still takes part in the step, with one micro-batch of
        zero images.
        """
        base, extra = divmod(min(self.batch, self.samples - step * self.batch), self.shards)
        return [n for n in (base + (s < extra) for s in self.shards_of(rank, world_size)) if n] or [0]

    def stream(self, rank: int, world_size: int, epoch: int, step: int) -> Iterator[tuple[int, int, list[int]]]:
        """(epoch, step, samples) of every micro-batch of a rank from a point on, for ever."""
        while True:
            permutation = self.permutation(epoch)
            for current in range(step, self.steps):
                batch = permutation[current * self.batch : (current + 1) * self.batch]
                parts = np.array_split(batch, self.shards)
                for samples in [p.tolist() for p in (parts[s] for s in self.shards_of(rank, world_size)) if len(p)] or [
                    []
                ]:
                    yield epoch, current, samples
            epoch, step = epoch + 1, 0
