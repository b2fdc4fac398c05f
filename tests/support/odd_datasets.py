"""Datasets as people have them: one oddity each. Each has three ordinary training images and an odd one."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (64, 48)
ROW = "0 0.5 0.5 0.25 0.5\n"
ORDINARY = 3

Change = Callable[[Path], None]
"""Makes the dataset in a folder odd."""


def encoded(seed: int, form: str = "JPEG", mode: str = "RGB", size: tuple[int, int] = SIZE, **options: Any) -> bytes:
    """Return a picture in an image format."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


def write_ordinary(root: Path) -> None:
    """Write a dataset of three training images and one for the validation, with a label each."""
    for split, count in (("train", ORDINARY), ("val", 1)):
        for number in range(count):
            add(root, f"{number}.jpg", encoded(number), split=split)
    config(root, "names: [a, b]\n")


def add(root: Path, name: str, image: bytes, label: bytes | str | None = ROW, split: str = "train") -> None:
    """Write an image and its label."""
    path = root / "images" / split / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image)
    if label is not None:
        file = (root / "labels" / split / name).with_suffix(".txt")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(label.encode() if isinstance(label, str) else label)


def config(root: Path, text: str, paths: str = "train: images/train\nval: images/val\n") -> None:
    (root / "data.yaml").write_text(paths + text, encoding="utf-8")


def with_label(label: bytes | str | None) -> Change:
    """An odd label of an ordinary image."""
    return lambda root: add(root, "odd.jpg", encoded(9), label)


def with_image(image: bytes, name: str = "odd.jpg") -> Change:
    """An odd image with an ordinary label."""
    return lambda root: add(root, name, image)


def with_config(text: str, paths: str = "train: images/train\nval: images/val\n") -> Change:
    """An odd data file."""

    def change(root: Path) -> None:
        add(root, "odd.jpg", encoded(9))
        config(root, text, paths)

    return change


def _rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turned by 90 degrees
    return encoded(9, exif=exif)


def _sixteen_bits() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((SIZE[1], SIZE[0]), 40_000, np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


def _listed(extra: str) -> Change:
    def change(root: Path) -> None:
        add(root, "odd.jpg", encoded(9))
        names = [f"./images/train/{name}.jpg\n" for name in ("0", "1", "2", "odd")]
        (root / "train.txt").write_text("".join(names) + extra)
        config(root, "names: [a, b]\n", "train: train.txt\nval: images/val\n")

    return change


def _link_out(root: Path) -> None:
    secret = root.parent / f"{root.name}-secret.jpg"
    secret.write_bytes(encoded(9))
    add(root, "odd.jpg", b"")
    (root / "images" / "train" / "odd.jpg").unlink()
    (root / "images" / "train" / "odd.jpg").symlink_to(secret)


def _no_labels(root: Path) -> None:
    add(root, "odd.jpg", encoded(9))
    for path in (root / "labels").rglob("*.txt"):
        path.unlink()


ALIASES = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 8)}]\n" for i in range(8)
)
NAMES = "names: [a, b]\n"
POLYGON = "0 0.1 0.1 0.9 0.1 0.9 0.9 0.1 0.9\n"

CASES: dict[str, tuple[Change, str]] = {
    "nothing odd": (with_label(ROW), "4 of 4 images"),
    "class id beyond names": (with_label("7 0.5 0.5 0.2 0.2\n"), "exceeds dataset class count"),
    "negative class id": (with_label("-1 0.5 0.5 0.2 0.2\n"), "3 of 4 images"),
    "class id with a fraction": (with_label("0.5 0.5 0.5 0.2 0.2\n"), "3 of 4 images"),
    "box in pixels": (with_label("0 32 24 16 24\n"), "3 of 4 images"),
    "confidence as sixth column": (with_label("0 0.5 0.5 0.2 0.2 0.9\n"), "3 of 4 images"),
    "coordinate nan": (with_label("0 nan 0.5 0.2 0.2\n"), "3 of 4 images"),
    "box without area": (with_label("0 0.5 0.5 0 0\n"), "4 of 4 images"),
    "words in a label": (with_label("person 0.5 0.5 0.2 0.2\n"), "3 of 4 images"),
    "label with a byte order mark": (with_label(b"\xef\xbb\xbf" + ROW.encode()), "4 of 4 images"),
    "label in UTF-16": (with_label(ROW.encode("utf-16")), "3 of 4 images"),
    "label with CRLF": (with_label(ROW.replace("\n", "\r\n")), "4 of 4 images"),
    "the same row twice": (with_label(ROW * 2), "4 of 4 images"),
    "polygons for a detector": (with_label(POLYGON), "4 of 4 images"),
    "boxes and polygons mixed": (with_label(ROW + POLYGON), "3 of 4 images"),
    "empty label": (with_label(""), "4 of 4 images"),
    "no label": (with_label(None), "4 of 4 images"),
    "no labels at all": (_no_labels, "no labels"),
    "cut JPEG": (with_image(encoded(9)[:-400]), "3 of 4 images"),
    "JPEG without its end marker": (with_image(encoded(9)[:-2]), "3 of 4 images"),
    "empty file": (with_image(b""), "3 of 4 images"),
    "text as image": (with_image(b"<html>404</html>"), "3 of 4 images"),
    "PNG named .jpg": (with_image(encoded(9, "PNG")), "4 of 4 images"),
    "suffix in capitals": (with_image(encoded(9), "ODD.JPG"), "4 of 4 images"),
    "spaces and umlauts in a name": (with_image(encoded(9), "größe 1 (2).jpg"), "4 of 4 images"),
    "folders in a split": (with_image(encoded(9), "a/b/odd.jpg"), "4 of 4 images"),
    "gray image": (with_image(encoded(9, mode="L")), "4 of 4 images"),
    "CMYK JPEG": (with_image(encoded(9, mode="CMYK")), "4 of 4 images"),
    "PNG with alpha": (with_image(encoded(9, "PNG", "RGBA"), "odd.png"), "4 of 4 images"),
    "PNG with a palette": (with_image(encoded(9, "PNG", "P"), "odd.png"), "4 of 4 images"),
    "PNG of 16 bits": (with_image(_sixteen_bits(), "odd.png"), "4 of 4 images"),
    "JPEG turned by EXIF": (with_image(_rotated()), "4 of 4 images"),
    "image of 4 pixels": (with_image(encoded(9, size=(2, 2))), "3 of 4 images"),
    "very wide image": (with_image(encoded(9, size=(2000, 12))), "4 of 4 images"),
    "nc without names": (with_config("nc: 2\n"), "4 of 4 images"),
    "nc that differs from names": (with_config("nc: 3\n" + NAMES), "nc: 3, but names has 2 classes"),
    "names with gaps": (with_config("names: {0: a, 5: b}\n"), "class ids must be 0 to 1"),
    "no names": (with_config(""), "names: must list the classes"),
    "no val": (with_config(NAMES, "train: images/train\n"), "val: is missing"),
    "path of another machine": (with_config("path: /home/ann/set\n" + NAMES), "4 of 4 images"),
    "paths of Roboflow": (with_config(NAMES, "train: ../images/train\nval: ../images/val\n"), "4 of 4 images"),
    "path out of the dataset": (with_config(NAMES, "train: /etc\nval: images/val\n"), "does not exist"),
    "tab in the YAML": (with_config("names:\n\t- a\n"), "is not valid YAML in line 4"),
    "aliases that fill the memory": (with_config(f"{ALIASES}names: *i\n"), "a name must be a text or a number"),
    "download script": (with_config(NAMES + "download: |\n  raise SystemExit(3)\n"), "4 of 4 images"),
    "list of images": (_listed(""), "4 of 4 images"),
    "list with an image that does not exist": (_listed("./images/train/gone.jpg\n"), "4 of 5 images"),
    "list that leads out of the dataset": (_listed("/etc/hostname.jpg\n"), "leads out of the dataset"),
    "link out of the volume": (_link_out, "which is outside of the volume"),
}
"""(change of an ordinary dataset, our verdict or a part of it), by what is odd."""


def tree(root: Path) -> dict[str, tuple[int, bytes]]:
    """Return all files below a folder: (time of the last change, content)."""
    files = {str(path.relative_to(root)): path for path in sorted(root.rglob("*")) if path.is_file()}
    return {name: (path.lstat().st_mtime_ns, path.read_bytes()) for name, path in files.items()}
