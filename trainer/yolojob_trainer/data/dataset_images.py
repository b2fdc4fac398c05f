"""Finds the images of a dataset."""

from __future__ import annotations

import glob
import itertools
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from ultralytics.data.utils import IMG_FORMATS

from yolojob_trainer.data.dataset_description import Split

Image.init()
IMAGE_FORMATS = tuple(
    name
    for name in ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
    if name in Image.OPEN
)
"""Pillow's names of the formats that are read. It would give others to programs: PostScript to Ghostscript."""


def image_files(split: Split) -> Iterator[Path]:
    """Yield the files that a training takes for images, in no order.

    Like upstream, it follows links to folders, and leaves out names that begin with a dot. Images in lists need not
    exist.
    """
    patterns = [f"{glob.escape(str(folder))}/**/*.*" for folder in split.folders]
    # Path.rglob does not follow links to folders.
    found = (Path(name) for pattern in patterns for name in glob.iglob(pattern, recursive=True))  # noqa: PTH207
    for path in itertools.chain(split.images, found):
        if path.suffix[1:].lower() in IMG_FORMATS:
            yield path
