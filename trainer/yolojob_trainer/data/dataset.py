"""Ultralytics' detection dataset with a private label cache, and samples that depend only on seed, epoch and number."""

from __future__ import annotations

import ctypes
import random
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Sampler
from ultralytics.data.dataset import DATASET_CACHE_VERSION, YOLODataset

from yolojob_trainer.data import image_cache, label_cache
from yolojob_trainer.data.label_table import LabelTable, NpyFiles
from yolojob_trainer.data.mosaic_window import MosaicWindow
from yolojob_trainer.data.recent_images import RecentImages
from yolojob_trainer.data.recipe import CHANNELS, Recipe, Shape, flatten, loaded_shape, recorder, without_pixels
from yolojob_trainer.data.render import Renderer, ShapeError
from yolojob_trainer.data.render_batch import RecipeBatch
from yolojob_trainer.data.sample_order import SampleOrder
from yolojob_trainer.data.scan import ScanCounts, split_messages, summarize
from yolojob_trainer.system.process import release_freed_memory
from yolojob_trainer.system.upstream_patches import extend_image_check, forbid_label_pickles, replace_jpeg_repair

CHECKED_FORMATS = ("JPEG", "MPO", "PNG")
"""Formats whose content upstream checks: a JPEG by its end marker, a PNG by its checksums."""
MAX_PIXELS = 100_000_000
"""A file of a few kilobytes may hold more, and takes three bytes of memory for each pixel."""

Sample = tuple[int, int]
"""(epoch, index of the image)."""
LoadedSamples = tuple[list[dict[str, Any]], torch.Tensor | None]
"""Samples, and the pixels of all of them unless they hold their own or recipes."""


class NodeDataset(YOLODataset):
    """A dataset whose label cache is in a folder of this node.

    Upstream keeps a pickle beside the labels and trusts any file with that name. A dataset is untrusted: pickles inside
    it are not read. It may also be read-only.
    """

    scan: ScanCounts
    """What the scan of the labels has found."""
    left_out: list[str]
    """Upstream's messages about images that it leaves out, one for each."""
    notes: list[str]
    """Other messages for the user, such as why images are not cached."""
    cache: str | None
    labels: Any
    im_files: Any
    npy_files: Any
    ims: Any
    im_hw0: Any
    im_hw: Any
    shared: image_cache.SharedImages | None = None
    """The decoded images, if the job keeps all of them in memory."""
    recent: RecentImages | None = None
    """The decoded images that were loaded last, if they are kept in memory."""
    keeps_recent = True
    """Whether an image is needed again soon after it was loaded: without mosaics it is not."""
    caches_labels = True
    """Whether scanned labels are written to the label cache."""
    not_recorded: str | None = None
    """Why samples of this dataset are not described by recipes; None if they are."""

    def __init__(
        self, *args: Any, label_folder: Path, boundary: Path | None, augment: bool = True, **kwargs: Any
    ) -> None:
        """
        Args:
            args: of upstream's dataset.
            label_folder: folder for label caches; created if missing.
            boundary: folder that links to images and labels must not leave; None if they may lead anywhere.
            augment: of upstream's dataset.
            kwargs: of upstream's dataset.

        Raises:
            ValueError: the dataset cannot be used; the message is for the user.
        """
        label_folder.mkdir(parents=True, exist_ok=True)
        # Before upstream's constructor, which scans the labels.
        self._label_folder, self._boundary, self._augments = label_folder, boundary, augment
        self.notes = []
        self._renderer, self._drawing = Renderer(), False
        super().__init__(*args, augment=augment, **kwargs)
        self.npy_files = NpyFiles(self.im_files)
        # A loader process that writes to the freed memory of the scan gets a copy of it: 300 bytes for each image.
        release_freed_memory()
        # Upstream's loader would keep a buffer of its own, see `mosaic_window` and `recent_images`.
        self.augment = False

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.not_recorded is not None:
            return super().__getitem__(index)  # type: ignore[no-any-return]
        sample = self.draw(index)
        pixels = torch.empty((CHANNELS, *sample["recipe"].size), dtype=torch.uint8)
        self.render(sample.pop("recipe"), pixels)
        return {**sample, "img": pixels}

    def render(self, recipe: Recipe, out: torch.Tensor) -> None:
        """Write the pixels of a sample.

        Args:
            recipe: of the sample.
            out: (channels, height, width), uint8, contiguous.

        Raises:
            ShapeError: the label scan has read another shape of an image.
        """
        self._renderer.render(recipe, self, out.numpy())

    def draw(self, index: int) -> dict[str, Any]:
        """Return a sample with a recipe instead of pixels, drawn by the random generators of `random` and NumPy."""
        self._drawing = True
        try:
            sample: dict[str, Any] = super().__getitem__(index)
        finally:
            self._drawing = False
        return sample

    def get_image_and_label(self, index: int) -> dict[str, Any]:
        sample: dict[str, Any] = super().get_image_and_label(index)
        return {**sample, "number": index} if self._drawing else sample

    def paste(self, image: int, shape: Shape, x: int, y: int, out: image_cache.Image) -> None:
        """Copy a part of an image, see `render.Images`."""
        if self.recent and self.recent.paste(image, shape, x, y, out):
            return
        pixels = self.shared[image] if self.shared else self.load_image(image)[0]
        if pixels.shape[:2] != shape:
            raise ShapeError(image)
        out[:] = pixels[y : y + out.shape[0], x : x + out.shape[1]]

    def correct_shape(self, image: int) -> None:
        """Set the shape of an image to that of its pixels: the label scan may have read it in another way."""
        self.labels.set_shape(image, self.load_image(image)[1])

    def update_labels(self, include_class: list[int] | None) -> None:
        super().update_labels(include_class)
        self._tabulate()

    def set_rectangle(self) -> None:
        super().set_rectangle()
        self._tabulate()

    def _tabulate(self) -> None:
        self.labels = LabelTable(self.labels)
        self.im_files = self.labels.files

    def load_image(self, i: int, *args: Any, **kwargs: Any) -> Any:
        if self._drawing:
            original = self.labels.shape(i)
            loaded_as = loaded_shape(original, self.imgsz)
            return without_pixels(loaded_as), original, loaded_as
        recent = self.recent if self.keeps_recent and not args and not kwargs else None
        if recent and (kept := recent.get(i)):
            return kept
        loaded = super().load_image(i, *args, **kwargs)
        if recent:
            recent.put(i, loaded)
        # Some augmentations work in place; the shared image must stay unchanged.
        return (loaded[0].copy(), *loaded[1:]) if self.shared else loaded

    def check_cache_ram(self, safety_margin: float = 0.1) -> bool:
        """Return whether the decoded images fit in memory, estimated from about 30 of them."""
        sample = range(0, self.ni, max(self.ni // 30, 1))
        needed = sum(self.load_image(i)[0].nbytes for i in sample) / len(sample) * self.ni * (1 + safety_margin)
        if reason := image_cache.why_not_fitting(int(needed)):
            self.notes.append(reason)
            self.cache = None
        return reason is None

    def cache_images(self) -> None:
        if self.cache != "ram":
            super().cache_images()
            return
        key = f"{self._scan_hash}/{self.labels.files.digest()}/{self.imgsz}/{self.channels}"
        self.shared = image_cache.share(key, self.ni, self.load_image)
        self.ims, self.im_hw0, self.im_hw = self.shared, self.shared.originals, self.shared.sizes

    def keep_recent(self, count: int, memory: float) -> None:
        """Keep the images in shared memory that were loaded last. Call it before loader processes start.

        Args:
            count: number of images that are needed again soon.
            memory: bytes that they may take.
        """
        largest = self.imgsz * self.imgsz * self.channels
        slots = min(count, self.ni, int(memory) // largest)
        self.recent = RecentImages(slots, largest, self.ni) if slots > 0 and not self.shared else None

    def why_not_in_memory(self) -> str | None:
        """Return why the decoded images do not fit in shared memory; None if they do."""
        return None if self.check_cache_ram() else self.notes.pop()

    def keep_in_memory(self, keep: bool) -> None:
        """Start or stop keeping decoded images in shared memory.

        Raises:
            OSError: the memory is full; `why_not_in_memory` should tell before.
        """
        if keep == (self.shared is not None):
            return
        if keep:
            self.cache = "ram"
            self.cache_images()
        else:
            self.cache, self.shared = None, None
            self.ims, self.im_hw0, self.im_hw = [None] * self.ni, [None] * self.ni, [None] * self.ni

    def build_transforms(self, hyp: Any = None) -> Any:
        self.augment = self._augments  # also when `close_mosaic` builds them again, in the middle of a training
        try:
            transforms = super().build_transforms(hyp)
        finally:
            self.augment = False
        for transform in flatten(transforms):
            if hasattr(transform, "buffer_enabled"):
                transform.buffer_enabled = True  # also with cached images, so that the samples are the same
        if not self._augments:
            self.not_recorded = "they are not augmented"
            return transforms
        recording = recorder(transforms) if self.channels == CHANNELS else f"images have {self.channels} channels"
        self.not_recorded = recording if isinstance(recording, str) else None
        return transforms if isinstance(recording, str) else recording

    def get_img_files(self, img_path: Any) -> list[str]:
        files: list[str] = super().get_img_files(img_path)
        self._check_links(files)
        return files

    def get_label_files(self) -> list[str]:
        files: list[str] = super().get_label_files()
        self._check_links(files)
        return files

    def _check_links(self, files: list[str]) -> None:
        check_links(files, self._boundary)

    @property
    def in_memory(self) -> bool:
        """Whether all decoded images are kept in memory."""
        return self.shared is not None

    def unlink_shared(self) -> None:
        """Remove the name of the shared images. All ranks of this node must have opened them."""
        if self.shared:
            self.shared.unlink()

    def warnings(self) -> list[str]:
        """Return messages about images without labels."""
        return self.scan.warnings(self.labels.labelled)

    def _load_or_scan_cache(self, cache_path: Path, cache_hash: str) -> tuple[dict[str, Any], bool]:
        self._scan_hash = cache_hash
        path = self._label_folder / f"{cache_path.stem}-{cache_hash}.npz"
        scan = label_cache.read(path, self.im_files, cache_hash) if self.caches_labels else None
        exists = scan is not None
        if scan is None:
            scan = self._scan_labels()
            if self.caches_labels:
                label_cache.write(path, scan)
        self.scan = ScanCounts.from_results(scan["results"])
        self.left_out, notes = split_messages(scan["msgs"], self.prefix)
        self.notes += notes
        if not scan["labels"]:
            raise ValueError(f"none of {self.scan.total} images can be used: {summarize(self.left_out)}")
        return {**scan, "version": DATASET_CACHE_VERSION}, exists

    def _scan_labels(self) -> dict[str, Any]:
        """Scan images and labels.

        Raises:
            ValueError: no image has a label.
        """
        try:
            return self.cache_labels()  # type: ignore[no-any-return]
        except ValueError as error:
            if "No labels found" not in str(error):
                raise
            raise ValueError(
                f"no labels found for {len(self.im_files)} images: the label of {self.im_files[0]} must be "
                f"{self.label_files[0]}, and so for the others"
            ) from None


def check_links(files: list[str], boundary: Path | None) -> None:
    """Check that links do not lead out of the volume: messages quote what a label file holds.

    Args:
        files: of a dataset.
        boundary: the volume; None if links may lead anywhere.

    Raises:
        ValueError: a file or its folder is a link that does.
    """
    if boundary is None:
        return
    # Whole paths are resolved only for links: a dataset has few folders and, as a rule, no links.
    paths = [Path(file) for file in files]
    folders = {folder: folder.resolve() for folder in {path.parent for path in paths}}
    for file in paths:
        real = file.resolve() if file.is_symlink() else folders[file.parent]
        if not real.is_relative_to(boundary):
            raise ValueError(f"{file} is a link to {real}, which is outside of the volume; copy the data into it")


def _check_jpeg(path: str, _repair: Any) -> None:
    """Decode a JPEG that does not end with an end marker, and raise an error if that fails.

    Trailing bytes after the end marker are harmless, a missing end marker is not. Only decoding tells; the loader later
    tolerates the same errors.
    """
    with Image.open(path) as image:
        image.load()


def _check_content(path: str) -> None:
    """Decode an image of a format whose content upstream does not check, and raise an error if that fails.

    Also refuse images that take too much memory when they are decoded, in each step that uses them.
    """
    with Image.open(path) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"has {image.width} x {image.height} pixels, more than {MAX_PIXELS / 1e6:.0f} million")
        if image.format not in CHECKED_FORMATS:
            image.load()


replace_jpeg_repair(_check_jpeg)
extend_image_check(_check_content)
forbid_label_pickles()


class TrainSamples(torch.utils.data.Dataset[dict[str, Any]]):
    """The training samples: an item depends only on (seed, epoch, number), not on the items loaded before it.

    So augmentation does not depend on the number of workers or loader processes, and a resumed run gets the same
    samples as an uninterrupted one. In the last `close_mosaic` epochs mosaic and similar augmentations are off; each
    process switches them off when it gets the first sample of such an epoch, so that prefetching can cross the boundary
    of two epochs.
    """

    def __init__(
        self, dataset: NodeDataset, *, seed: int, window: MosaicWindow, close_mosaic_at: int, hyp: Any
    ) -> None:
        self.dataset = dataset
        self.seed = seed
        self.window = window
        self.close_mosaic_at = close_mosaic_at
        self.hyp = hyp
        self.closed = False
        self._transforms: dict[bool, tuple[Any, ...]] = {}
        """The transforms that were used before, by `closed`, with the attributes that building them sets."""
        self.sends_recipes = False
        """Whether batches hold recipes instead of pixels."""

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, sample: Sample) -> dict[str, Any]:
        self._enter(sample[0])
        return self._seeded(sample, self.dataset.draw if self.sends_recipes else self.dataset.__getitem__)

    def __getitems__(self, samples: list[Sample]) -> LoadedSamples:
        """Return the samples of a microbatch, which are of one epoch. The loader prefers this method."""
        self._enter(samples[0][0])
        if self.sends_recipes or self.dataset.not_recorded:
            return [self[sample] for sample in samples], None
        # All samples in one tensor: no copies of them have to be stacked.
        side = self.dataset.imgsz
        pixels = torch.empty((len(samples), CHANNELS, side, side), dtype=torch.uint8)

        def load(number: int, out: torch.Tensor) -> dict[str, Any]:
            sample = self.dataset.draw(number)
            self.dataset.render(sample.pop("recipe"), out)
            return sample

        return [self._seeded(s, partial(load, out=out)) for s, out in zip(samples, pixels, strict=True)], pixels

    def _seeded(self, sample: Sample, load: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
        """Return a sample, with the random generators as they are for it."""
        epoch, number = sample
        if not self.closed:
            self.dataset.buffer = self.window.images(epoch, number)
        while True:
            seeds = np.random.SeedSequence([self.seed, epoch, number]).generate_state(2)
            random.seed(int(seeds[0]))
            np.random.seed(int(seeds[1]))
            try:
                return load(number)
            except ShapeError as error:
                self.dataset.correct_shape(error.image)

    def _enter(self, epoch: int) -> None:
        """Use the transforms of this epoch."""
        if self.closed != (epoch >= self.close_mosaic_at):
            self._close(not self.closed)

    def _close(self, closed: bool) -> None:
        """Switch mosaic and similar augmentations off, or on again: a rollback may go back to an earlier epoch."""
        dataset = self.dataset
        self._transforms[self.closed] = dataset.transforms, dataset.not_recorded, dataset.use_segments
        if closed and closed not in self._transforms:
            self.dataset.close_mosaic(hyp=self.hyp)
        else:
            dataset.transforms, dataset.not_recorded, dataset.use_segments = self._transforms[closed]
        self.dataset.keeps_recent = not closed
        self.closed = closed

    def collate(self, loaded: LoadedSamples) -> dict[str, Any]:
        """Return a batch, with the pixels as "img" or with a `RecipeBatch` as "recipes"."""
        samples, pixels = loaded
        recipes = [sample.pop("recipe") for sample in samples if "recipe" in sample]
        batch: dict[str, Any] = self.dataset.collate_fn(samples)
        if pixels is not None:
            return {**batch, "img": pixels}
        return {**batch, "recipes": RecipeBatch.of_samples(recipes)} if recipes else batch


class MicroBatches(Sampler[list[Sample]]):
    """Yields the samples of a rank's microbatches from a step on, across epochs, without an end.

    A microbatch without samples gets sample 0 as a placeholder, because the rank must take part in the step; its loss
    has no weight.
    """

    def __init__(self, order: SampleOrder, *, rank: int, world_size: int, start: tuple[int, int]) -> None:
        """
        Args:
            order: of all samples.
            rank: of this process.
            world_size: number of ranks.
            start: (epoch, step), counted from 0.
        """
        self.order, self.rank, self.world_size, self.start = order, rank, world_size, start

    def __iter__(self) -> Iterator[list[Sample]]:
        for epoch, _, samples in self.order.stream(self.rank, self.world_size, *self.start):
            yield [(epoch, number) for number in samples or [0]]


_PR_SET_PDEATHSIG = 1
"""Number of an operation of prctl(2): the signal that a process gets when its parent ends."""


def _prepare_loader_process(_: int) -> None:
    """Use one thread, and end with the training process, whose sockets and GPU memory this process holds, too."""
    torch.set_num_threads(1)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def loader(
    samples: TrainSamples, batches: MicroBatches, *, workers: int, prefetch: int, pin_memory: bool
) -> Iterator[dict[str, Any]]:
    """Return an iterator over the collated microbatches.

    Args:
        samples: the training samples.
        batches: which samples form a microbatch.
        workers: loader processes; 0 loads in this process.
        prefetch: microbatches that each loader process loads ahead.
        pin_memory: whether the tensors are in page-locked memory.
    """
    return iter(
        DataLoader(
            samples,
            batch_sampler=batches,
            num_workers=workers,
            prefetch_factor=prefetch if workers else None,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            collate_fn=cast("Any", samples.collate),
            worker_init_fn=_prepare_loader_process,
            # The dataset shares its images with its copies; the default of Python 3.14 would pickle it.
            multiprocessing_context="fork" if workers else None,
        )
    )


class LimitedLoader:
    """The first batches of a loader."""

    def __init__(self, loader: Any, count: int) -> None:
        self._loader, self._count = loader, count
        self.dataset = loader.dataset

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Any]:
        for _, batch in zip(range(self._count), self._loader, strict=False):
            yield batch
