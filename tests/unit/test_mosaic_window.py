"""The images from which mosaics are made: the last ones of the sample's shard, whatever process loads it."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from yolojob_trainer.data.mosaic_window import MIN_IMAGES, MosaicWindow
from yolojob_trainer.data.sample_order import SampleOrder


def shard_streams(order: SampleOrder, epochs: int) -> list[list[tuple[int, int]]]:
    """Returns the (epoch, number) of all samples of each shard, in the order in which a rank of its own loads them."""
    streams: list[list[tuple[int, int]]] = []
    for rank in range(order.shards):
        stream: list[tuple[int, int]] = []
        for epoch, _, samples in order.stream(rank, order.shards, 0, 0):
            if epoch == epochs:
                break
            stream += [(epoch, number) for number in samples]
        streams.append(stream)
    return streams


@settings(deadline=None)
@given(samples=st.integers(1, 400), batch=st.integers(1, 40), shards=st.integers(1, 5), seed=st.integers(0, 3))
def test_window_holds_the_images_that_the_shard_has_loaded_last(
    samples: int, batch: int, shards: int, seed: int
) -> None:
    order = SampleOrder(samples=samples, batch=batch, shards=shards, seed=seed)
    window = MosaicWindow(order)
    for stream in shard_streams(order, 3):
        for i, (epoch, number) in enumerate(stream):
            images = window.images(epoch, number)
            loaded = [n for e, n in stream[: i + 1] if e >= epoch - 1][-window.length :]
            assert images[-1] == number
            assert images[len(images) - len(loaded) :] == loaded
            assert len(images) <= window.length
            assert all(0 <= image < samples for image in images)


def test_window_of_the_first_sample_is_full() -> None:
    order = SampleOrder(samples=1_000, batch=16, shards=2, seed=0)
    window = MosaicWindow(order)
    images = window.images(0, int(order.permutation(0)[0]))
    assert len(images) == window.length == MIN_IMAGES
    assert len(set(images)) > 0.9 * MIN_IMAGES


def test_window_does_not_depend_on_the_samples_asked_for_before() -> None:
    order = SampleOrder(samples=500, batch=20, shards=3, seed=1)
    asked = MosaicWindow(order)
    for epoch in (0, 5, 1, 4):
        for number in range(0, 500, 7):
            assert asked.images(epoch, number) == MosaicWindow(order).images(epoch, number)


@pytest.mark.parametrize(("batch", "shards", "length"), [(4, 1, 128), (64, 1, 512), (64, 8, 128), (256, 1, 1000)])
def test_length_is_that_of_upstreams_buffer_within_bounds(batch: int, shards: int, length: int) -> None:
    order = SampleOrder(samples=10_000, batch=batch, shards=shards, seed=0)
    assert MosaicWindow(order).length == length


def test_partners_are_drawn_as_evenly_as_from_upstreams_buffer() -> None:
    """How often an image is a partner in an epoch: mean 3, and the deviation of a buffer that is filled in order."""
    order = SampleOrder(samples=2_000, batch=16, shards=1, seed=0)
    window = MosaicWindow(order)
    random = np.random.default_rng(0)
    ours, upstream = np.zeros(2_000), np.zeros(2_000)
    buffer: list[int] = []
    for epoch in range(4):
        for number in order.permutation(epoch).tolist():
            buffer = [*buffer, number][-window.length :]
            np.add.at(upstream, random.choice(buffer, 3), 1)
            np.add.at(ours, random.choice(window.images(epoch, number), 3), 1)
    assert statistics.fmean(ours) == statistics.fmean(upstream) == 3 * 4
    assert np.std(ours) == pytest.approx(np.std(upstream), rel=0.1)
