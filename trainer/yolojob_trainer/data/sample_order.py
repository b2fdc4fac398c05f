"""Deterministic sharded sampler: the order of samples depends only on (seed, epoch), not on the number of workers.

The global batch is split into `shards`, one for each worker process that the job may have. A rank trains one shard, or
several one after the other if there are fewer ranks than shards. The gradient is the same, up to the order of
additions.
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
        shards: parts into which a global batch is split.
        seed: seed of the permutations.
    """

    samples: int
    batch: int
    shards: int
    seed: int

    @property
    def steps(self) -> int:
        """Number of global batches of an epoch; the last one may be smaller."""
        return -(-self.samples // self.batch)

    def images(self, step: int) -> int:
        """Return the number of images in the global batch of a step."""
        return min(self.batch, self.samples - step * self.batch)

    def permutation(self, epoch: int) -> NDArray[np.int64]:
        """Return all samples, each once, in the order of this epoch."""
        return np.random.default_rng([self.seed, epoch]).permutation(self.samples)

    def shards_of(self, rank: int, world_size: int) -> range:
        """Return the shards of a rank: adjacent ones, and for all ranks the same number up to one."""
        base, extra = divmod(self.shards, world_size)
        start = rank * base + min(rank, extra)
        return range(start, start + base + (rank < extra))

    def sizes(self, step: int, rank: int, world_size: int) -> list[int]:
        """Return the number of images in each microbatch of a rank in a step.

        A small last batch may leave a rank without samples. The rank still takes part in the step, with one microbatch
        of zero images.
        """
        base, extra = divmod(self.images(step), self.shards)
        return [n for n in (base + (s < extra) for s in self.shards_of(rank, world_size)) if n] or [0]

    def stream(self, rank: int, world_size: int, epoch: int, step: int) -> Iterator[tuple[int, int, list[int]]]:
        """Yield (epoch, step, samples) of every microbatch of a rank from a step on, without an end."""
        while True:
            permutation = self.permutation(epoch)
            for current in range(step, self.steps):
                batch = permutation[current * self.batch : (current + 1) * self.batch]
                parts = np.array_split(batch, self.shards)
                shards = [parts[s].tolist() for s in self.shards_of(rank, world_size) if len(parts[s])]
                for samples in shards or [[]]:
                    yield epoch, current, samples
            epoch, step = epoch + 1, 0
