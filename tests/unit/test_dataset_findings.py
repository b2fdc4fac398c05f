"""Findings from the result of a check."""

from __future__ import annotations

from typing import Any

import pytest

from yolojob.api.dataset_check import BOX_EDGES, RATIO_EDGES, DatasetCheck, FileProblem, Leak, SplitCheck
from yolojob.reports import dataset_findings
from yolojob.reports.dataset_findings import Level


def split(**values: Any) -> SplitCheck:
    return SplitCheck(**{"images": 100, **values})


def result(train: SplitCheck, **values: Any) -> DatasetCheck:
    return DatasetCheck(
        **{
            "task": "detect",
            "image_size": 640,
            "names": ["a", "b"],
            "splits": {"train": train, "val": split()},
            **values,
        }
    )


@pytest.mark.parametrize(
    ("check", "level", "message"),
    [
        (result(split(), refused="spec.dataset: val: is missing"), Level.ERROR, "spec.dataset: val: is missing"),
        (
            result(split(), leak_count=2, leaks=[Leak(files=["a", "b"], same_bytes=True)] * 2),
            Level.WARNING,
            "2 picture(s) are in more than one split: the validation",
        ),
        (
            result(split(), leak_count=1, leaks=[Leak(files=["a", "b"], same_bytes=False)]),
            Level.WARNING,
            "in more than one split, some in another encoding or size",
        ),
        (
            result(split(broken_count=3, broken=[FileProblem(file="x.jpg", reason="is cut")])),
            Level.WARNING,
            "train: 3 of 100 image(s) are left out, such as x.jpg: is cut",
        ),
        (result(split(duplicate_count=4)), Level.WARNING, "train: 4 image(s) are copies of others and count double"),
        (
            result(split(orphan_count=1, orphans=["l/x.txt"])),
            Level.WARNING,
            "1 label file(s) have no image, such as l",
        ),
        (result(split(modes={"RGB": 1, "L": 2})), Level.NOTE, "several colour modes (L: 2, RGB: 1)"),
        (result(split(without_label=5)), Level.WARNING, "5 image(s) have no label file; they count as images without"),
        (result(split(empty=5)), Level.NOTE, "5 image(s) have an empty label file"),
        (
            result(split(objects=10, box_sizes=[2, 8, 0, 0, 0, 0, 0, 0])),
            Level.WARNING,
            "20% of the objects are",
        ),
        (result(split(classes={"a": 30, "b": 0})), Level.WARNING, "train: 1 class(es) do not occur: b"),
        (result(split(classes={"a": 30, "b": 7})), Level.WARNING, "train: 1 class(es) occur less than 20 times: b"),
        (result(split(classes={"a": 3000, "b": 30})), Level.NOTE, "occurs 100 times as often as the rarest"),
    ],
)
def test_finding_says_what_is_wrong(check: DatasetCheck, level: Level, message: str) -> None:
    (finding,) = dataset_findings.findings(check)
    assert finding.level is level
    assert message in finding.message


def test_dataset_without_problems_has_no_finding_and_worse_findings_come_first() -> None:
    good = split(objects=100, classes={"a": 50, "b": 50}, box_sizes=[0, 0, 100, 0, 0, 0, 0, 0], modes={"RGB": 100})
    assert dataset_findings.findings(result(good)) == []
    bad = split(empty=1, without_label=1)
    levels = [finding.level for finding in dataset_findings.findings(result(bad, refused="no"))]
    assert levels == [Level.ERROR, Level.WARNING, Level.NOTE]


def test_intervals_have_a_name_each() -> None:
    assert len(dataset_findings.box_size_labels()) == len(BOX_EDGES) + 1 == len(SplitCheck().box_sizes)
    assert len(dataset_findings.ratio_labels()) == len(RATIO_EDGES) + 1 == len(SplitCheck().ratios)
