"""Labels and file names in arrays instead of an object for each image."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from yolojob_trainer.data.label_table import LabelTable, NpyFiles, Texts


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=20))
def test_texts_are_those_of_the_list(texts: list[str]) -> None:
    table = Texts(texts)
    assert list(table) == texts
    assert table[:3] == texts[:3]
    assert [table[-1 - i] for i in range(len(texts))] == texts[::-1]
    with pytest.raises(IndexError):
        table[len(texts)]


def test_file_names_that_are_not_utf8_survive() -> None:
    assert list(Texts(["a\udcff.png"])) == ["a\udcff.png"]


def test_digest_differs_for_other_borders_between_texts() -> None:
    assert Texts(["ab", "c"]).digest() != Texts(["a", "bc"]).digest()
    assert Texts(["ab", "c"]).digest() == Texts(["ab", "c"]).digest()


def test_npy_files_lie_beside_the_images() -> None:
    files = NpyFiles(["/data/a.b.jpg", "/data/c.png"])
    assert list(files) == files[:] == [Path("/data/a.b.npy"), Path("/data/c.npy")]


def random_labels(images: int, *, keypoints: bool, shapes: bool) -> list[dict[str, Any]]:
    generator = np.random.default_rng(0)
    labels = []
    for i in range(images):
        boxes = int(generator.integers(0, 4))
        label: dict[str, Any] = {
            "im_file": f"/data/{i}.png",
            "cls": generator.integers(0, 5, (boxes, 1)).astype(np.float32),
            "bboxes": generator.uniform(0, 1, (boxes, 4)).astype(np.float32),
            "segments": [
                generator.uniform(0, 1, (int(generator.integers(3, 9)), 2)).astype(np.float32)
                for _ in range(boxes if i % 2 else 0)
            ],
            "keypoints": generator.uniform(0, 1, (boxes, 3, 2)).astype(np.float32) if keypoints else None,
            "normalized": True,
            "bbox_format": "xywh",
        }
        labels.append({**label, "shape": (i + 1, 2 * i + 1)} if shapes else label)
    return labels


@pytest.mark.parametrize("keypoints", [True, False])
@pytest.mark.parametrize("shapes", [True, False])
def test_table_gives_the_labels_of_the_scan(keypoints: bool, shapes: bool) -> None:
    labels = random_labels(20, keypoints=keypoints, shapes=shapes)
    table = LabelTable(labels)
    assert len(table) == 20
    assert table.labelled == sum(len(label["cls"]) > 0 for label in labels)
    for found, label in zip(table, labels, strict=True):
        assert found.keys() == label.keys()
        for key, value in label.items():
            np.testing.assert_equal(found[key], value)


def test_set_shape_replaces_the_shape_of_one_image() -> None:
    table = LabelTable(random_labels(3, keypoints=False, shapes=True))
    table.set_shape(1, (7, 9))
    assert [label["shape"] for label in table] == [(1, 1), (7, 9), (3, 5)]


def test_table_takes_a_few_bytes_for_each_image() -> None:
    labels = random_labels(1_000, keypoints=False, shapes=True)
    for label in labels:
        label["segments"] = []
    assert len(pickle.dumps(LabelTable(labels))) < 1_000 * 120, "20 bytes for each box, 48 for each image, and its name"
