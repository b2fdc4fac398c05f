"""The order of samples depends only on seed and epoch."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st
from yolojob_trainer.data.sample_order import SampleOrder

orders = st.builds(
    SampleOrder,
    samples=st.integers(1, 200),
    batch=st.integers(1, 64),
    shards=st.integers(1, 8),
    seed=st.integers(0, 3),
)


def epoch_of(order: SampleOrder, world_size: int, epoch: int = 0) -> list[list[int]]:
    """The samples of each step, of all ranks in shard order."""
    steps: list[list[int]] = [[] for _ in range(order.steps)]
    for rank in range(world_size):
        for sample_epoch, step, samples in order.stream(rank, world_size, epoch, 0):
            if sample_epoch != epoch:
                break
            steps[step] += samples
    return steps


@given(orders, st.integers(1, 8))
def test_epoch_with_any_number_of_ranks_visits_every_sample_once(order: SampleOrder, world_size: int) -> None:
    world_size = min(world_size, order.shards)
    steps = epoch_of(order, world_size)
    assert sorted(itertools.chain(*steps)) == list(range(order.samples))
    assert steps == epoch_of(order, 1), "the batches depend on the number of ranks"


@given(orders, st.integers(1, 8))
def test_sizes_equal_those_of_the_stream(order: SampleOrder, world_size: int) -> None:
    world_size = min(world_size, order.shards)
    for rank in range(world_size):
        stream = order.stream(rank, world_size, 0, 0)
        for step in range(order.steps):
            for size in order.sizes(step, rank, world_size):
                epoch, stream_step, samples = next(stream)
                assert (epoch, stream_step, len(samples)) == (0, step, size)


@given(orders, st.data())
def test_stream_resumed_within_an_epoch_continues_the_undisturbed_stream(
    order: SampleOrder, data: st.DataObject
) -> None:
    first_step = data.draw(st.integers(0, order.steps - 1))
    undisturbed = [s for _, step, s in itertools.islice(order.stream(0, 1, 0, 0), 300) if step >= first_step]
    resumed = [s for _, _, s in itertools.islice(order.stream(0, 1, 0, first_step), len(undisturbed))]
    first_epoch = sum(1 for _ in itertools.takewhile(lambda x: x[0] == 0, order.stream(0, 1, 0, first_step)))
    assert resumed[:first_epoch] == undisturbed[:first_epoch]


@given(orders)
def test_permutation_of_another_epoch_or_seed_differs(order: SampleOrder) -> None:
    if order.samples > 20:
        assert list(order.permutation(0)) != list(order.permutation(1))
        other = SampleOrder(samples=order.samples, batch=order.batch, shards=order.shards, seed=order.seed + 1)
        assert list(order.permutation(0)) != list(other.permutation(0))


@given(st.integers(1, 16), st.integers(1, 16))
def test_shards_of_the_ranks_are_contiguous_and_balanced(shards: int, world_size: int) -> None:
    order = SampleOrder(samples=100, batch=16, shards=shards, seed=0)
    shards_by_rank = [order.shards_of(rank, world_size) for rank in range(world_size)]
    assert list(itertools.chain(*shards_by_rank)) == list(range(shards))
    assert max(map(len, shards_by_rank)) - min(map(len, shards_by_rank)) <= 1
