"""Annotations in Pascal VOC's format: what a conversion writes and refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.annotated_datasets import SPLITS, check_equal, convert, rows, voc
from yolojob_trainer.errors import BadInput

pytestmark = pytest.mark.torch


BOMB = '<!DOCTYPE a [<!ENTITY x "y"><!ENTITY z "&x;&x;">]><annotation>&z;</annotation>'


def test_list_of_a_split_outside_of_the_dataset_is_not_read(digits: dict[str, Path], tmp_path: Path) -> None:
    root = tmp_path / "source"
    names = voc(digits["digits"], "train", root / "Annotations", root / "JPEGImages")
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "list.txt").write_text("\n".join(names))
    for split in SPLITS:
        (root / "ImageSets" / "Main" / f"{split}.txt").symlink_to(tmp_path / "list.txt")
    with pytest.raises(BadInput, match="the annotations have no split named val"):
        convert(root, tmp_path / "converted")


def test_file_that_is_no_json_does_not_hide_other_annotations(digits: dict[str, Path], tmp_path: Path) -> None:
    for split in SPLITS:
        voc(digits["digits"], split, tmp_path / "source" / split, tmp_path / "source" / split)
    (tmp_path / "source" / "notes.json").write_text("{not json")
    (tmp_path / "source" / "train" / "._a.xml").write_bytes(b"\0\5\26\7")
    assert convert(tmp_path / "source", tmp_path / "converted").format == "Pascal VOC"


def test_voc_with_folders_of_splits_and_names_with_spaces(digits: dict[str, Path], tmp_path: Path) -> None:
    for split in SPLITS:
        voc(digits["digits"], split, tmp_path / "a" / "annotations" / split, tmp_path / "a" / "images" / split)
    assert convert(tmp_path / "a", tmp_path / "a-converted").images == {"train": 20, "val": 20}

    root = tmp_path / "b"
    for split in SPLITS:
        names = voc(digits["digits"], split, root / "Annotations", root / "JPEGImages")
        for folder, suffix in (("Annotations", "xml"), ("JPEGImages", "png")):
            (root / folder / f"{names[0]}.{suffix}").rename(root / folder / f"my {split}.{suffix}")
        (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join([f'"my {split}"', *names[1:]]))
    assert convert(root, tmp_path / "b-converted").images == {"train": 20, "val": 20}


@pytest.mark.parametrize("layout", ["lists", "folders"])
def test_voc_gives_the_labels_that_it_was_made_from(digits: dict[str, Path], tmp_path: Path, layout: str) -> None:
    source = tmp_path / "source"
    for split in SPLITS:
        if layout == "folders":
            voc(digits["digits"], split, source / split, source / split)
            continue
        root = source / "VOCdevkit" / "VOC2012"
        names = voc(digits["digits"], split, root / "Annotations", root / "JPEGImages")
        (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names))
    result = convert(source, tmp_path / "converted")
    assert (result.format, result.images, result.classes) == ("Pascal VOC", {"train": 20, "val": 20}, 10)
    for split in SPLITS:
        labels = tmp_path / "converted" / "labels" / split
        flat = tmp_path / f"flat-{split}" / "labels" / split
        flat.mkdir(parents=True)
        for file in labels.rglob("*.txt"):
            file.rename(flat / file.name.removeprefix(f"{split}-"))
        check_equal(rows(tmp_path / f"flat-{split}", split), rows(digits["digits"], split))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "defines entities"),
        ("<annotation>", "is not valid XML"),
        ("", "is not valid XML"),
        (" " * (2 << 20), "is larger than 1 MiB"),
        ("<annotation><object><name>a\x7fb</name></object></annotation>", "is no name for a class"),
        ("<annotation><object></object></annotation>", "is no name for a class"),
    ],
)
def test_xml_that_is_not_valid_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.xml").write_text(text)
    with pytest.raises(BadInput, match=f"spec.dataset: .*{message}"):
        convert(tmp_path / "source", tmp_path / "converted")
