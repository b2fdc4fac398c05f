"""Keeps the decoded images that were loaded last, in memory that the loader processes of a rank share."""

from __future__ import annotations

import mmap
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from yolojob_trainer.data.image_cache import Image, Loaded

MEMORY_SHARE = 0.25
"""Of a worker's free memory; the rest is for the network and the batches."""
_LOCKS = 64
"""Locks of the slots. A process holds one while it copies an image, a tenth of a millisecond."""
LOCK_TIMEOUT_SECONDS = 1.0
"""Then the image is decoded instead."""
_FIELDS = 6
"""Numbers that describe a slot: image, height, width, channels, height and width of the file."""


class RecentImages:
    """A ring of slots with one image each. The newest image takes the slot of the oldest one."""

    def __init__(self, slots: int, slot_bytes: int, images: int) -> None:
        """
        Args:
            slots: number of images that are kept.
            slot_bytes: size of the largest image.
            images: number of images in the dataset.
        """
        # Anonymous shared memory: processes that are forked later share it, and the kernel provides a page only when
        # it is written.
        self._bytes = _shared(slots * slot_bytes, np.uint8).reshape(slots, slot_bytes)
        self._slots = _shared(slots * _FIELDS, np.int32).reshape(slots, _FIELDS)
        self._slots[:, 0] = -1
        self._slot_of = _shared(images, np.int32)
        self._slot_of[:] = -1
        self._next = _shared(1, np.int64)
        context = multiprocessing.get_context("fork")
        self._turn = context.Lock()
        self._locks = [context.Lock() for _ in range(min(_LOCKS, slots))]

    @staticmethod
    @contextmanager
    def _held(lock: Any) -> Iterator[bool]:
        """Hold a lock; yields False if a process that was killed has left it locked."""
        held = lock.acquire(timeout=LOCK_TIMEOUT_SECONDS)
        try:
            yield held
        finally:
            if held:
                lock.release()

    def get(self, image: int) -> Loaded | None:
        """Return a copy of an image; None if it is not kept."""
        slot = int(self._slot_of[image])
        if slot < 0:
            return None
        with self._held(self._locks[slot % len(self._locks)]) as held:
            kept, height, width, channels, *original = self._slots[slot].tolist()
            if not held or kept != image:
                return None
            pixels = self._bytes[slot, : height * width * channels].copy()
        return pixels.reshape(height, width, channels), (original[0], original[1]), (height, width)

    def paste(self, image: int, shape: tuple[int, int], x: int, y: int, out: Image) -> bool:
        """Copy a part of an image; return whether it is kept and has this shape. For the arguments see `render`."""
        slot = int(self._slot_of[image])
        if slot < 0:
            return False
        with self._held(self._locks[slot % len(self._locks)]) as held:
            kept, height, width, channels, *_ = self._slots[slot].tolist()
            if not held or kept != image or (height, width) != shape:
                return False
            pixels = self._bytes[slot, : height * width * channels].reshape(height, width, channels)
            out[:] = pixels[y : y + out.shape[0], x : x + out.shape[1]]
        return True

    def put(self, image: int, loaded: Loaded) -> None:
        """Keep an image instead of the oldest one. An image that does not fit in a slot is not kept."""
        pixels, original, _ = loaded
        if pixels.dtype != np.uint8 or pixels.nbytes > self._bytes.shape[1]:
            return
        with self._held(self._turn) as held:
            if not held:
                return
            slot = int(self._next[0]) % len(self._slots)
            self._next[0] += 1
        with self._held(self._locks[slot % len(self._locks)]) as held:
            if not held:
                return
            if (old := int(self._slots[slot, 0])) >= 0 and self._slot_of[old] == slot:
                self._slot_of[old] = -1
            self._bytes[slot, : pixels.nbytes] = pixels.reshape(-1)
            self._slots[slot] = (image, *pixels.shape, *original)
            self._slot_of[image] = slot


def _shared(count: int, dtype: Any) -> Any:
    """Return an array of zeros that processes share which are forked later."""
    return np.frombuffer(mmap.mmap(-1, max(count * np.dtype(dtype).itemsize, 1)), dtype)
