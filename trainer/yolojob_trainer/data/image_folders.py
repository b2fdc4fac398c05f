"""Ultralytics' classification dataset, with the interface of `data.dataset.NodeDataset`."""

from __future__ import annotations

import os
import random
from itertools import repeat
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import default_collate
from ultralytics.data.dataset import ClassificationDataset
from ultralytics.data.utils import verify_image
from ultralytics.utils import IterableSimpleNamespace

from yolojob_trainer.data.dataset import check_links
from yolojob_trainer.data.scan import split_messages, summarize
from yolojob_trainer.system import host
from yolojob_trainer.system.process import available_cpus

SAMPLE = 30
"""Images that are decoded to estimate the memory of all."""
SAFETY_MARGIN = 0.1
LISTED_CLASSES = 10
"""Classes that a message names."""


class ImageFolders(ClassificationDataset):  # type: ignore[misc]
    """Images in a folder for each class."""

    not_recorded: str | None = "images for a classification are cropped and recoloured by torchvision"
    shared = None
    in_memory = False
    keeps_recent = False
    use_segments = False
    transforms: Any = None
    buffer: Any = ()

    def __init__(
        self,
        *,
        img_path: list[str],
        augment: bool,
        hyp: Any,
        boundary: Path | None,
        **settings: Any,
    ) -> None:
        """
        Args:
            img_path: the folder of the split.
            augment: whether samples are augmented.
            hyp: Ultralytics' settings of the training.
            boundary: folder that links to images must not leave; None if they may lead anywhere.
            settings: others that `NodeDataset` takes.

        Raises:
            ValueError: the dataset cannot be used; the message is for the user.
        """
        self._names: dict[int, str] = settings["data"]["names"]
        self._copies = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # each process of this worker keeps its own
        self._boundary, self._split = boundary, settings["prefix"]
        self.imgsz: int = settings["imgsz"]
        self.notes: list[str] = []
        self.left_out: list[str] = []
        super().__init__(
            img_path[0],
            args=IterableSimpleNamespace(**{**vars(hyp), "cache": settings.get("cache")}),
            augment=augment,
            prefix="train" if augment else hyp.split,
            names=settings["data"]["names"],
        )
        if not self.samples:
            raise ValueError(f"no images in the folders of the classes below {img_path[0]}: {summarize(self.left_out)}")

    def verify_images(self) -> list[tuple[str, int]]:
        """Return the images that can be used. Upstream keeps a pickle of them beside the dataset."""
        check_links([file for file, _ in self.samples], self._boundary)
        with ThreadPool(available_cpus()) as pool:
            checked = pool.map(verify_image, zip(self.samples, repeat("")))
        self.left_out, notes = split_messages([message for *_, message in checked if message], self._split)
        self.notes += notes
        return [sample for sample, found, _, _ in checked if found]

    def __getitem__(self, i: int) -> dict[str, Any]:
        # torchvision draws from torch's generator: it gets a state that depends only on those that the caller has set.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(random.getrandbits(63))
            return {**super().__getitem__(i), "im_file": self.samples[i][0]}

    collate_fn = staticmethod(default_collate)

    @property
    def im_files(self) -> list[str]:
        """The files of all images."""
        return [sample[0] for sample in self.samples]

    @property
    def ni(self) -> int:
        """Number of images."""
        return len(self.samples)

    def warnings(self) -> list[str]:
        """Return a message about classes without images in this split."""
        present = {sample[1] for sample in self.samples}
        missing = [name for i, name in self._names.items() if i not in present]
        listed = ", ".join(missing[:LISTED_CLASSES])
        return [f"{len(missing)} of {len(self._names)} classes have no image: {listed}"] if missing else []

    def close_mosaic(self, hyp: Any) -> None:
        """Do nothing: there are no mosaics."""

    def keep_recent(self, count: int, memory: float) -> None:
        """Do nothing: an image is needed once in an epoch."""

    def unlink_shared(self) -> None:
        """Do nothing: loader processes share the images with the process that has started them."""

    def why_not_in_memory(self) -> str | None:
        """Return why the decoded images do not fit in memory, estimated from some of them; None if they do."""
        files = self.im_files[:: max(self.ni // SAMPLE, 1)]
        pixels = [image.nbytes for file in files if (image := self.imread(file)) is not None]
        needed = sum(pixels) / max(len(pixels), 1) * self.ni * (1 + SAFETY_MARGIN)
        available = host.free_memory(torch.device("cpu")) // self._copies
        if needed < available:
            return None
        return (
            f"cache: ram: {needed / 2**20:.0f} MiB of images do not fit ({available / 2**20:.0f} MiB of memory are "
            "free)"
        )

    def keep_in_memory(self, keep: bool) -> None:
        """Start or stop keeping the decoded images in memory."""
        if keep and not self.in_memory:
            self.cache_images()
        elif not keep and self.in_memory:
            del self.img_cache
        self.cache_ram = self.in_memory = keep
