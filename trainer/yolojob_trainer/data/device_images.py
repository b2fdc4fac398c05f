"""`cache: gpu`: keeps all decoded images in the memory of the device, where `render_batch` makes samples of them."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import torch

from yolojob_trainer.data.dataset import NodeDataset
from yolojob_trainer.data.recipe import CHANNELS, Shape, loaded_shape
from yolojob_trainer.data.render_batch import ImageMemory
from yolojob_trainer.system import host
from yolojob_trainer.system.process import available_cpus

MEMORY_SHARE = 0.5
"""Of the device's free memory; the rest is for the training."""


def why_not(dataset: NodeDataset, device: torch.device) -> str | None:
    """Return why the images cannot be kept in the memory of a device; None if they can."""
    if dataset.not_recorded:
        return f"cache: gpu: {dataset.not_recorded}"
    needed = sum(CHANNELS * math.prod(shape) for shape in _shapes(dataset))
    if needed <= (room := MEMORY_SHARE * host.free_memory(device)):
        return None
    return (
        f"cache: gpu: {needed / 2**20:.0f} MiB of images do not fit in {MEMORY_SHARE:.0%} of the device's free memory, "
        f"which is {room / 2**20:.0f} MiB"
    )


def _shapes(dataset: NodeDataset) -> list[Shape]:
    return [loaded_shape(dataset.labels.shape(i), dataset.imgsz) for i in range(dataset.ni)]


def _decode(dataset: NodeDataset, device: torch.device) -> tuple[ImageMemory, list[int]]:
    """Return all images, and the numbers of those whose shape is another one than the label scan has read."""
    shapes, wrong = _shapes(dataset), []
    starts = [0, *torch.tensor([CHANNELS * math.prod(shape) for shape in shapes]).cumsum(0).tolist()]
    pixels = torch.empty(starts[-1], dtype=torch.uint8, device=device)
    with ThreadPoolExecutor(available_cpus()) as pool:
        for i, (image, *_) in enumerate(pool.map(dataset.load_image, range(len(shapes)))):
            if image.shape[:2] == shapes[i]:
                pixels[starts[i] : starts[i + 1]] = torch.from_numpy(image).view(-1)
            else:
                wrong.append(i)
    index = torch.tensor([(start, width) for start, (_, width) in zip(starts, shapes, strict=False)])
    return ImageMemory(pixels=pixels, index=index.to(device)), wrong


def load(dataset: NodeDataset, device: torch.device) -> ImageMemory:
    """Decode all images into the memory of a device.

    Args:
        dataset: its shapes are corrected where the label scan has read another one than that of the pixels.
        device: of the training.

    Raises:
        torch.OutOfMemoryError: they do not fit; `why_not` should tell before.
    """
    images, wrong = _decode(dataset, device)
    if wrong:  # where Pillow and OpenCV read an orientation differently
        del images
        for image in wrong:
            dataset.correct_shape(image)
        images, _ = _decode(dataset, device)
    return images
