"""Ultralytics' detection data set, with a label cache of our own and samples that depend on nothing but their number."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import ultralytics.data.utils
from PIL import Image
from torch.utils.data import DataLoader, Sampler
from ultralytics.data.dataset import YOLODataset

from yolojob_trainer.data import image_cache
from yolojob_trainer.data.sample_order import SampleOrder

IGNORED = "ignoring corrupt image/label"
"""How upstream says that it leaves an image out."""

Sample = tuple[int, int]
"""(epoch, number of the image)."""


class DetectionDataset(YOLODataset):
    """A data set whose label cache lies in our folder.

    Upstream keeps a pickle beside the labels and trusts whatever lies there. A data set is data from somewhere: its
    pickles are not read, and its folder may be read-only.
    """

    label_cache: Path
    """Folder for label caches; set on a subclass by `in_folder`, because the constructor already scans."""

    @classmethod
    def in_folder(cls, folder: Path) -> type[DetectionDataset]:
        folder.mkdir(parents=True, exist_ok=True)
        return type(cls.__name__, (cls,), {"label_cache": folder, "__module__": cls.__module__})

    messages: list[str]
    """Why images are left out, a line for each; and why they are not cached."""
    cache: str | None
    ims: Any
    im_hw0: Any
    im_hw: Any
    shared: image_cache.SharedImages | None = None
    """The decoded images, where the job wants them in memory."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Transforms are built; what is left of `augment` upstream is a buffer of the images loaded last.
        self.augment = False

    def load_image(self, i: int, *args: Any, **kwargs: Any) -> Any:
        found = super().load_image(i, *args, **kwargs)
        # Some augmentations work in place, and the next one to see this image must not see what they did.
        return (found[0].copy(), *found[1:]) if self.shared else found

    def check_cache_ram(self, safety_margin: float = 0.1) -> bool:
        """Whether the decoded images fit, judged by some of them."""
        some = range(0, self.ni, max(self.ni // 30, 1))
        needed = sum(self.load_image(i)[0].nbytes for i in some) / len(some) * self.ni * (1 + safety_margin)
        if why := image_cache.fits(int(needed)):
            self.messages.append(why)
            self.cache = None
        return why is None

    def cache_images(self) -> None:
        if self.cache != "ram":
            super().cache_images()
            return
        key = f"{self.get_cache_hash()}/{self.im_files}/{self.imgsz}/{self.channels}"
        self.shared = image_cache.share(key, self.ni, self.load_image)
        self.ims, self.im_hw0, self.im_hw = self.shared, self.shared.originals, self.shared.sizes

    def keep_in_memory(self, keep: bool) -> None:
        """Begin to hold decoded images in shared memory, or stop it.

        Raises:
            OSError: they do not fit.
        """
        if keep == (self.shared is not None):
            return
        if keep:
            self.cache = "ram"
            if not self.check_cache_ram():
                raise OSError(self.messages.pop())
            self.cache_images()
        else:
            self.cache, self.shared = None, None
            self.ims, self.im_hw0, self.im_hw = [None] * self.ni, [None] * self.ni, [None] * self.ni

    def build_transforms(self, hyp: Any = None) -> Any:
        transforms = super().build_transforms(hyp)
        for transform in _flatten(transforms):
            if hasattr(transform, "buffer_enabled"):
                # Partners of a mosaic come from all images, not from those that this process happened to load last.
                transform.buffer_enabled = False
        return transforms

    def _load_or_scan_cache(self, cache_path: Path, cache_hash: str) -> tuple[dict[str, Any], bool]:
        own = self.label_cache / f"{cache_path.stem}-{cache_hash}.cache"
        found: tuple[dict[str, Any], bool] = super()._load_or_scan_cache(own, cache_hash)
        self.messages = [m for m in found[0]["msgs"] if IGNORED in m]
        return found

    def cache_labels(self, path: Path = Path("labels.cache")) -> dict[str, Any]:
        # Upstream writes in place: whoever reads meanwhile finds half a file.
        temporary = path.with_name(f".{os.getpid()}.{path.name}")
        try:
            labels: dict[str, Any] = super().cache_labels(temporary)
            if temporary.exists():
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        return labels


def _decode(path: str, _repair: Any) -> None:
    """In place of upstream's repair of a JPEG that has no end, which writes into the data set.

    A data set may be shared, or read-only. Something behind the end of a JPEG is harmless, a missing end is not: only
    decoding tells, and who decodes it later is as patient as this.
    """
    with Image.open(path) as image:
        image.load()


ultralytics.data.utils._replace_image = _decode


def _flatten(transform: Any) -> Iterator[Any]:
    yield transform
    for child in getattr(transform, "transforms", ()):
        yield from _flatten(child)


class TrainSamples(torch.utils.data.Dataset[dict[str, Any]]):
    """The training samples: what an item is depends on (seed, epoch, number) and on nothing that came before it.

    So augmentation does not depend on how many workers or loader processes share the epoch, and a resumed run sees what
    the undisturbed one saw. The last `close_mosaic` epochs switch mosaic and its kin off, each process by itself when the
    first sample of such an epoch arrives, so that prefetching can run across the border of two epochs.
    """

    def __init__(self, dataset: YOLODataset, *, seed: int, close_mosaic_at: int, hyp: Any) -> None:
        self.dataset = dataset
        self.seed = seed
        self.close_mosaic_at = close_mosaic_at
        self.hyp = hyp
        self.closed = False
        self.collate_fn = dataset.collate_fn

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, sample: Sample) -> dict[str, Any]:
        epoch, number = sample
        if not self.closed and epoch >= self.close_mosaic_at:
            self.closed = True
            self.dataset.mosaic = False
            self.dataset.close_mosaic(hyp=self.hyp)
        words = np.random.SeedSequence([self.seed, epoch, number]).generate_state(2)
        random.seed(int(words[0]))
        np.random.seed(int(words[1]))
        item: dict[str, Any] = self.dataset[number]
        return item


class MicroBatches(Sampler[list[Sample]]):
    """Feeds a loader with a rank's micro-batches from a point on, across epochs, for ever.

    A micro-batch without a sample gets sample 0 as a stand-in: the rank must take part in the step. `weights` says so.
    """

    def __init__(self, order: SampleOrder, *, rank: int, world_size: int, epoch: int, step: int) -> None:
        self.order, self.rank, self.world_size, self.epoch, self.step = order, rank, world_size, epoch, step

    def __iter__(self) -> Iterator[list[Sample]]:
        for epoch, _, samples in self.order.stream(self.rank, self.world_size, self.epoch, self.step):
            yield [(epoch, number) for number in samples or [0]]


def _quiet_worker(_: int) -> None:
    torch.set_num_threads(1)


def loader(
    samples: TrainSamples, batches: MicroBatches, *, workers: int, prefetch: int, pin_memory: bool
) -> Iterator[dict[str, Any]]:
    """The micro-batches themselves, loaded ahead by `workers` processes (none: in this one), each by `prefetch`."""
    return iter(
        DataLoader(
            samples,
            batch_sampler=batches,
            num_workers=workers,
            prefetch_factor=prefetch if workers else None,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            collate_fn=samples.collate_fn,
            worker_init_fn=_quiet_worker,
        )
    )
