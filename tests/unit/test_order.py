"""The order of samples is a function of (seed, epoch) alone."""

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
    """Per step, what all ranks train together, in shard order."""
    steps: list[list[int]] = [[] for _ in range(order.steps)]
    for rank in range(world_size):
        for found, step, samples in order.stream(rank, world_size, epoch, 0):
            if found != epoch:
                break
            steps[step] += samples
    return steps


@given(orders, st.integers(1, 8))
def test_an_epoch_visits_every_sample_once_with_any_number_of_ranks(order: SampleOrder, world_size: int) -> None:
    world_size = min(world_size, order.shards)
    steps = epoch_of(order, world_size)
    assert sorted(itertools.chain(*steps)) == list(range(order.samples))
    assert steps == epoch_of(order, 1), "the same batches, whoever shares them"


@given(orders, st.integers(1, 8))
def test_sizes_foretell_the_stream(order: SampleOrder, world_size: int) -> None:
    world_size = min(world_size, order.shards)
    for rank in range(world_size):
        stream = order.stream(rank, world_size, 0, 0)
        for step in range(order.steps):
            for size in order.sizes(step, rank, world_size):
                epoch, at, samples = next(stream)
                assert (epoch, at, len(samples)) == (0, step, size)


@given(orders, st.data())
def test_a_resumed_run_sees_what_the_undisturbed_one_saw(order: SampleOrder, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, order.steps - 1))
    undisturbed = [s for _, step, s in itertools.islice(order.stream(0, 1, 0, 0), 300) if step >= at]
    resumed = [s for _, _, s in itertools.islice(order.stream(0, 1, 0, at), len(undisturbed))]
    first_epoch = sum(1 for _ in itertools.takewhile(lambda x: x[0] == 0, order.stream(0, 1, 0, at)))
    assert resumed[:first_epoch] == undisturbed[:first_epoch]


@given(orders)
def test_epochs_differ_and_seeds_differ(order: SampleOrder) -> None:
    if order.samples > 20:
        assert list(order.permutation(0)) != list(order.permutation(1))
        other = SampleOrder(samples=order.samples, batch=order.batch, shards=order.shards, seed=order.seed + 1)
        assert list(order.permutation(0)) != list(other.permutation(0))


@given(st.integers(1, 16), st.integers(1, 16))
def test_shards_are_shared_evenly(shards: int, world_size: int) -> None:
    order = SampleOrder(samples=100, batch=16, shards=shards, seed=0)
    mine = [order.shards_of(rank, world_size) for rank in range(world_size)]
    assert list(itertools.chain(*mine)) == list(range(shards))
    assert max(map(len, mine)) - min(map(len, mine)) <= 1
