"""The ring of decoded images that processes share."""

from __future__ import annotations

import multiprocessing
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from yolojob_trainer.data.image_cache import Loaded
from yolojob_trainer.data.recent_images import RecentImages

SIDE = 8
SLOT_BYTES = SIDE * SIDE * 3


def image(number: int) -> Loaded:
    """An image whose pixels all have its number, with a size of its own."""
    height, width = 1 + number % SIDE, 1 + number // SIDE % SIDE
    pixels = np.full((height, width, 3), number % 251, np.uint8)
    return pixels, (10 * height, 10 * width), (height, width)


def check(found: Loaded, number: int) -> None:
    expected = image(number)
    np.testing.assert_array_equal(found[0], expected[0])
    assert found[1:] == expected[1:]


@settings(deadline=None)
@given(slots=st.integers(1, 6), asked=st.lists(st.integers(0, 30), max_size=60))
def test_ring_keeps_the_images_that_were_put_last(slots: int, asked: list[int]) -> None:
    ring = RecentImages(slots, SLOT_BYTES, images=31)
    kept: OrderedDict[int, None] = OrderedDict()
    for number in asked:
        found = ring.get(number)
        assert (found is not None) == (number in kept)
        if found is None:
            ring.put(number, image(number))
            kept[number] = None
            if len(kept) > slots:
                kept.popitem(last=False)
        else:
            check(found, number)


def test_changed_copy_leaves_the_kept_image_unchanged() -> None:
    ring = RecentImages(2, SLOT_BYTES, images=2)
    ring.put(1, image(1))
    found = ring.get(1)
    assert found is not None
    found[0][:] = 0
    again = ring.get(1)
    assert again is not None
    check(again, 1)


@pytest.mark.parametrize("pixels", [np.zeros((SIDE + 1, SIDE, 3), np.uint8), np.zeros((2, 2, 3), np.uint16)])
def test_image_that_does_not_fit_in_a_slot_is_not_kept(pixels: np.ndarray) -> None:
    ring = RecentImages(2, SLOT_BYTES, images=2)
    ring.put(0, (pixels, (1, 1), (1, 1)))
    assert ring.get(0) is None


def load(ring: RecentImages, seed: int, faults: multiprocessing.SimpleQueue[str]) -> None:
    random = np.random.default_rng(seed)
    for number in random.integers(0, 40, 3_000).tolist():
        found = ring.get(number)
        if found is None:
            ring.put(number, image(number))
        elif not np.array_equal(found[0], image(number)[0]):
            faults.put(f"image {number} has the pixels of another one")
    faults.put("")


@pytest.mark.processes
def test_processes_that_use_one_ring_never_see_a_part_of_an_image() -> None:
    context = multiprocessing.get_context("fork")
    ring, faults = RecentImages(16, SLOT_BYTES, images=40), context.SimpleQueue()
    loaders = [context.Process(target=load, args=(ring, seed, faults)) for seed in range(4)]
    for loader in loaders:
        loader.start()
    found = [faults.get() for _ in loaders]
    for loader in loaders:
        loader.join()
    assert found == [""] * len(loaders)
