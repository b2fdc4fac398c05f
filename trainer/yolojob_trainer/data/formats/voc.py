"""Reads annotations in Pascal VOC's XML format, which has boxes only."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring
from ultralytics.data.utils import IMG_FORMATS

from yolojob_trainer.data.dataset_description import MAX_CLASSES
from yolojob_trainer.data.dataset_folders import folders_of
from yolojob_trainer.data.formats.annotation import (
    TEST,
    TRAIN,
    TURNED,
    VAL,
    AnnotatedDataset,
    AnnotatedImage,
    Annotation,
    Box,
    ImageFinder,
    split_of,
    used_size,
)
from yolojob_trainer.data.untrusted import MAX_NAME, integer, is_class_name

ANNOTATIONS, IMAGES, LISTS = "Annotations", "JPEGImages", "ImageSets/Main"
"""Folders of Pascal VOC's own layout."""
MAX_FILE_BYTES = 1 << 20
MAX_LIST_BYTES = 100 << 20


def annotation_files(root: Path) -> dict[str, list[Path]]:
    """Return the XML files of each split: by Pascal VOC's lists, or by the folders in which they are."""
    splits: dict[str, list[Path]] = {}
    for folder in folders_of(root):
        if files := sorted(path for path in folder.glob("*.xml") if not path.name.startswith(".") and path.is_file()):
            for split, part in _by_lists(root, folder, files).items():
                splits.setdefault(split, []).extend(part)
    return splits


def list_files(root: Path) -> list[Path]:
    """Return the files that list the images of the splits."""
    lists = (folder / f"{split}.txt" for folder in folders_of(root) for split in (TRAIN, VAL, TEST))
    return [path for path in lists if path.is_file() and path.parent.as_posix().endswith(f"/{LISTS}")]


def _by_lists(root: Path, folder: Path, files: list[Path]) -> dict[str, list[Path]]:
    """Return the files of a folder by split."""
    splits = {}
    for split in (TRAIN, VAL, TEST):
        path = folder.parent / LISTS / f"{split}.txt"
        # Links out of the dataset are not followed: the content of a list decides nothing else.
        is_ours = path.is_file() and path.resolve().is_relative_to(root) and path.stat().st_size <= MAX_LIST_BYTES
        if folder.name == ANNOTATIONS and is_ours:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            names = {line.strip().strip('"') for line in lines}  # some exporters quote names with spaces
            splits[split] = [file for file in files if file.stem in names]
    return {split: part for split, part in splits.items() if part} or {split_of(folder / "*.xml", root): files}


def read(splits: dict[str, list[Path]], finder: ImageFinder) -> AnnotatedDataset | None:
    """Read annotations; None if there are none.

    The classes are in the order of their names, because Pascal VOC states no ids.

    Raises:
        BadInput: a file is not valid.
    """
    files = [path for part in splits.values() for path in part]
    names: set[str] = set()
    for path in dict.fromkeys(files):
        root = _parse(path, finder)
        if root is not None:
            names |= {_text(element, "name") for element in root.iter("object")}
    if not names:
        return None
    invalid = next((name for name in names if not is_class_name(name)), None)
    if invalid is not None or len(names) > MAX_CLASSES:
        problem = f"{str(invalid)[:MAX_NAME]!r} is no name for a class" if invalid is not None else "too many classes"
        raise finder.error(f"{files[0].parent}: {problem}")
    sizes = {split: len(part) for split, part in splits.items()}
    dataset = AnnotatedDataset(format="Pascal VOC", names=sorted(names), splits={}, sizes=sizes)
    for split, part in splits.items():
        dataset.splits[split] = _VocImages(part, finder, dataset)
    return dataset


class _VocImages:
    """The images of a split, read while they are iterated."""

    def __init__(self, files: list[Path], finder: ImageFinder, dataset: AnnotatedDataset) -> None:
        self._files, self._finder, self._dataset = files, finder, dataset

    def __iter__(self) -> Iterator[AnnotatedImage]:
        for path in self._files:
            root = _parse(path, self._finder)
            if root is None:
                continue
            file = self._image(path, root)
            if file is None:
                self._dataset.notes["image(s) with annotations do not exist"] += 1
                continue
            stated = root.find("size")
            sides = (integer(stated.findtext(side)) if stated is not None else None for side in ("width", "height"))
            size = used_size((next(sides), next(sides)), file)
            if size is None:
                self._dataset.notes[TURNED] += 1
                continue
            found = [self._annotation(element) for element in root.iter("object")]
            yield AnnotatedImage(
                file=file,
                name=f"{_prefix(path, self._finder.root)}{file.name}",
                width=size[0],
                height=size[1],
                annotations=[annotation for annotation in found if annotation],
            )

    def _image(self, path: Path, root: Element) -> Path | None:
        stated = _text(root, "filename").replace("\\", "/").rpartition("/")[2]
        suffixes = [spelling for suffix in sorted(IMG_FORMATS) for spelling in (suffix, suffix.upper())]
        names = [f"{path.stem}.{suffix}" for suffix in suffixes]
        # Exporters that rename images often leave the old name in the file.
        names = [stated, *names] if Path(stated).stem == path.stem else [*names, *([stated] if stated else [])]
        folders = _image_folders(path, self._finder.root)
        return next((found for name in names if (found := self._finder.find(name, folders, path))), None)

    def _annotation(self, element: Element) -> Annotation | None:
        """Return an object; None, and a note, if it cannot be used."""
        notes = self._dataset.notes
        if _text(element, "difficult") == "1":
            notes["difficult object(s) are left out, as in Ultralytics' VOC.yaml"] += 1
            return None
        bounds = element.find("bndbox")
        numbers = [_number(bounds, key) for key in ("xmin", "ymin", "xmax", "ymax")]
        left, top, right, bottom = (math.nan if number is None else number for number in numbers)
        # Pascal VOC counts pixels from 1.
        box: Box = (left - 1, top - 1, right, bottom)
        if not (right >= left and bottom >= top):  # also if one is not a number
            notes["object(s) with invalid coordinates are left out"] += 1
            return None
        return Annotation(name=_text(element, "name"), box=box)


def _image_folders(path: Path, root: Path) -> list[Path]:
    """Return where the image of an annotation may be: beside it, or in a folder like its own below the images."""
    folders = [path.parent, path.parent.parent / IMAGES, path.parent.parent / "images"]
    parts = path.parent.relative_to(root).parts
    for number, part in enumerate(parts):
        if part.lower() == ANNOTATIONS.lower():
            folders += [root.joinpath(*parts[:number], name, *parts[number + 1 :]) for name in (IMAGES, "images")]
    return [folder for folder in dict.fromkeys(folders) if folder.is_relative_to(root) and folder.is_dir()]


def _prefix(path: Path, root: Path) -> str:
    """Return what tells images of the same name apart, such as those of VOC2007 and VOC2012."""
    parts = path.parent.relative_to(root).parts
    return "".join(f"{part}/" for part in parts if part.lower() != ANNOTATIONS.lower())


def _parse(path: Path, finder: ImageFinder) -> Element | None:
    """Return the root of a file; None if it is not an annotation.

    Raises:
        BadInput: it is not valid.
    """
    finder.check_link(path)
    if path.stat().st_size > MAX_FILE_BYTES:
        raise finder.error(f"{path}: is larger than {MAX_FILE_BYTES >> 20} MiB")
    try:
        root: Any = fromstring(path.read_bytes())
    except DefusedXmlException:
        raise finder.error(f"{path}: defines entities, which an annotation does not need") from None
    except (ParseError, ValueError, LookupError):
        raise finder.error(f"{path}: is not valid XML") from None
    return root if root.tag == "annotation" else None


def _text(element: Element, tag: str) -> str:
    return (element.findtext(tag) or "").strip()


def _number(element: Element | None, tag: str) -> float | None:
    """Return a number of an element; None if it has none."""
    try:
        value = float((element.findtext(tag) or "") if element is not None else "")
    except ValueError:
        return None
    return value if math.isfinite(value) and abs(value) < 1e7 else None
