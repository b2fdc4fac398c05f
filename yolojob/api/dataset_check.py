"""Defines the result of `yolojob check`: what is in a dataset, and what is wrong with it."""

from __future__ import annotations

from pydantic import Field

from yolojob.api.base import LenientModel
from yolojob.api.fields import Count, NonNegative

LISTED = 50
"""Files or groups of files that a list names at most; the counts are of all."""
BOX_EDGES = (8, 16, 32, 64, 128, 256, 512)
"""Bounds of the sizes of objects, in pixels: the root of the area of the box in an image as the network sees it."""
RATIO_EDGES = (0.25, 0.4, 0.67, 0.9, 1.1, 1.5, 2.5, 4.0)
"""Bounds of the widths of images, in shares of their heights."""


class FileProblem(LenientModel):
    """A file that cannot be used."""

    file: str
    reason: str


class SplitCheck(LenientModel):
    """One split of a dataset."""

    images: Count = 0
    """Files with an image's name."""
    bytes: Count = 0
    broken_count: Count = 0
    broken: list[FileProblem] = Field(default_factory=list)
    """Images or labels that the training leaves out."""
    without_label: Count | None = None
    """Images without a label file; they count as images without objects. None for a classification."""
    empty: Count | None = None
    """Images with an empty label file."""
    orphan_count: Count = 0
    orphans: list[str] = Field(default_factory=list)
    """Label files without an image."""
    duplicate_count: Count = 0
    """Images beyond the first of each group with the same content."""
    duplicates: list[list[str]] = Field(default_factory=list)
    modes: dict[str, Count] = Field(default_factory=dict)
    """Images by their colour mode, as Pillow names it."""
    ratios: list[Count] = Field(default_factory=lambda: [0] * (len(RATIO_EDGES) + 1))
    """Images by the share of width and height; see RATIO_EDGES."""
    objects: Count | None = None
    """None if a label is not a list of objects."""
    classes: dict[str, Count] = Field(default_factory=dict)
    """Objects by class; for a classification, images."""
    box_sizes: list[Count] = Field(default_factory=lambda: [0] * (len(BOX_EDGES) + 1))
    """Objects by size; see BOX_EDGES."""


class Leak(LenientModel):
    """The same picture in two splits: a validation with it measures what the model has learnt by heart."""

    files: list[str]
    same_bytes: bool
    """False: the pictures look the same, in another encoding or size."""


class DatasetCheck(LenientModel):
    """The result of a check."""

    task: str
    image_size: Count
    """spec.train.imgsz."""
    names: list[str]
    splits: dict[str, SplitCheck]
    leak_count: Count = 0
    leaks: list[Leak] = Field(default_factory=list)
    decode_seconds: NonNegative | None = None
    """To read and decode an image, on one core."""
    sample_seconds: NonNegative | None = None
    """To make a training sample of images: decoding and augmentation, on one core."""
    refused: str | None = None
    """Why the training does not accept the dataset; None if it does."""
    preview: str | None = None
    """Training samples with their labels, as the network sees them: a JPEG in base64."""
