"""Reads all images of a dataset: what they are, whether they are broken, and which are the same."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from ultralytics.data.utils import exif_size

from yolojob_trainer.data.dataset import MAX_PIXELS
from yolojob_trainer.data.dataset_images import IMAGE_FORMATS
from yolojob_trainer.data.scan import one_line

FORMAT = 1
"""Of the files of results; raise it when other facts are read."""
FILE_MODE = 0o644
APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
"""A link or a pipe that somebody has put in place of a file of results is not used."""
MAX_FILE_BYTES = 1 << 30
TIMED_IMAGES = 50
BATCH = 256
"""Images after which the results are written to the disk."""
REASON_CHARACTERS = 200

Progress = Callable[[int, int], None]
"""Called with (bytes read, all bytes)."""


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """What a file contains."""

    size: int
    """Bytes."""
    changed: int
    """Time of the last change, in nanoseconds."""
    problem: str | None = None
    """Why it cannot be decoded."""
    width: int = 0
    height: int = 0
    mode: str = ""
    """Pillow's name of the colour mode."""
    content: str = ""
    """Hash of the file."""
    look: str = ""
    """Hash of the picture, the same in another encoding or size. Empty for a picture of one colour, or one that only
    gets darker."""

    @property
    def is_usable(self) -> bool:
        """Whether these are facts: a file of results may come from anywhere."""
        texts = (self.mode, self.content, self.look)
        numbers = (self.size, self.changed, self.width, self.height)
        if not all(type(number) is int for number in numbers):
            return False
        if not all(isinstance(text, str) and text.isascii() for text in texts):
            return False
        return isinstance(self.problem, str) or (self.problem is None and 0 < self.width * self.height <= MAX_PIXELS)


def read(path: Path) -> ImageFacts:
    """Read and decode an existing image. All errors of its content are in the result."""
    info = path.stat()
    try:
        if info.st_size > MAX_FILE_BYTES:
            raise ValueError(f"the file is larger than {MAX_FILE_BYTES >> 20} MiB")
        data = path.read_bytes()
        with Image.open(BytesIO(data), formats=IMAGE_FORMATS) as image:
            width, height = exif_size(image)
            mode = image.mode
            if width * height > MAX_PIXELS:
                raise ValueError(f"{width} x {height} pixels are more than {MAX_PIXELS}")
            image.load()
            look = _look(ImageOps.exif_transpose(image))
    except Exception as error:  # noqa: BLE001 - an untrusted file may raise anything
        reason = one_line(str(error)).replace(str(path), path.name)[:REASON_CHARACTERS]
        return ImageFacts(size=info.st_size, changed=info.st_mtime_ns, problem=reason or type(error).__name__)
    return ImageFacts(
        size=info.st_size,
        changed=info.st_mtime_ns,
        width=width,
        height=height,
        mode=mode,
        content=hashlib.sha256(data).hexdigest(),
        look=look,
    )


def decode_seconds(paths: list[Path]) -> float | None:
    """Return the time to read and decode an image in this thread, from some of them; None without images."""
    seconds = []
    for path in paths[:: max(len(paths) // TIMED_IMAGES, 1)]:
        began = time.perf_counter()
        with contextlib.suppress(Exception):  # it has changed since it was read
            Image.open(BytesIO(path.read_bytes()), formats=IMAGE_FORMATS).load()
            seconds.append(time.perf_counter() - began)
    return sum(seconds) / len(seconds) if seconds else None


def _look(image: Image.Image) -> str:
    """Return the difference hash of a picture: which of 8 x 8 places are brighter than their right neighbours."""
    pixels = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    bits = pixels[:, 1:] < pixels[:, :-1]
    return np.packbits(bits).tobytes().hex() if bits.any() and not bits.all() else ""


class FactsFile:
    """Results on the disk, by file: a check that was interrupted, or is repeated, reads only what is new."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, ImageFacts] = dict(self._read())

    def _read(self) -> Iterator[tuple[str, ImageFacts]]:
        if self._path.is_symlink() or not self._path.is_file():
            return
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            return
        for line in lines:
            try:
                name, content = json.loads(line)
                facts = ImageFacts(**content)
            except (ValueError, TypeError, RecursionError):
                continue  # the last line of a check that was killed
            if facts.is_usable:
                yield str(name), facts

    def get(self, path: Path) -> ImageFacts | None:
        """Return the facts about a file; None if they are unknown, or the file has changed."""
        known = self._known.get(str(path))
        if known is None:
            return None
        info = path.stat()
        return known if (known.size, known.changed) == (info.st_size, info.st_mtime_ns) else None

    def add(self, facts: dict[Path, ImageFacts]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, APPEND, FILE_MODE)
        with open(descriptor, "a", encoding="utf-8") as file:  # noqa: PTH123 - of a descriptor
            file.write("\n")  # the last line of a check that was killed may have no end
            file.writelines(json.dumps([str(path), asdict(found)]) + "\n" for path, found in facts.items())


def read_all(paths: Iterable[Path], known: FactsFile, threads: int, progress: Progress) -> dict[Path, ImageFacts]:
    """Return the facts about existing files.

    Args:
        paths: of images; those that do not exist are left out.
        known: results of earlier checks; the new ones are added.
        threads: that read and decode.
        progress: called after some images.
    """
    sizes = {path: path.stat().st_size for path in paths if path.is_file()}
    total, done = sum(sizes.values()), 0
    facts: dict[Path, ImageFacts] = {}
    with ThreadPoolExecutor(threads) as pool:
        for batch in _batches(list(sizes)):
            old = {path: found for path in batch if (found := known.get(path))}
            missing = [path for path in batch if path not in old]
            new = dict(zip(missing, pool.map(read, missing), strict=True))
            if new:
                known.add(new)
            facts |= old | new
            done += sum(sizes[path] for path in batch)
            progress(done, total)
    return {path: facts[path] for path in sizes}


def _batches(paths: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(paths), BATCH):
        yield paths[start : start + BATCH]
