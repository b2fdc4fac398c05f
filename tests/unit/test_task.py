"""What a model predicts, by its name, and the metrics that people read."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from support import minimal

from yolojob.api.manifest import InvalidManifest, load, parse
from yolojob.api.status import Progress, Result
from yolojob.api.task import Task, labelled, main_metric, metrics_by_name, named_score, tasks_of_name

EXAMPLES = Path(__file__).parent.parent.parent / "manifests" / "examples"


@pytest.mark.parametrize(
    ("model", "tasks"),
    [
        ("yolo26n.yaml", []),
        ("yolo26n-seg.pt", [Task.SEGMENT]),
        ("yolov8n-seg-p6.yaml", [Task.SEGMENT]),
        ("yolov8n-cls-resnet50.yaml", [Task.CLASSIFY]),
        ("yolo11x-pose.yaml", [Task.POSE]),
        ("yolo11x-obb.yaml", [Task.OBB]),
        ("yolo26s-sem.yaml", [Task.SEMANTIC]),
        ("yolo26s-depth.pt", [Task.DEPTH]),
        ("cars-segments.pt", []),
        ("cars-seg", []),
        ("cars-seg.pt", []),
        ("my-seg-pose.pt", []),
        ("runs-seg/best.pt", []),
        ("best.pt", []),
    ],
)
def test_tasks_of_name(model: str, tasks: list[Task]) -> None:
    assert tasks_of_name(model) == tasks


@pytest.mark.parametrize(
    ("task", "model", "stated"),
    [
        (None, "yolo26n.yaml", None),
        (None, "yolo26n-seg.yaml", Task.SEGMENT),
        ("segment", "yolo26n-seg.yaml", Task.SEGMENT),
        ("pose", "best.yaml", Task.POSE),
    ],
)
def test_stated_task(task: str | None, model: str, stated: Task | None) -> None:
    document = minimal(model={"name": model}, **({"task": task} if task else {}))
    assert parse(document).spec.stated_task == stated


@pytest.mark.parametrize(
    ("task", "model"), [("detect", "yolo26n-seg.yaml"), ("pose", "yolov8n-seg-p6.yaml"), ("obb", "yolo26n-seg.pt")]
)
def test_task_that_contradicts_the_name_of_the_model_is_refused(task: str, model: str) -> None:
    with pytest.raises(InvalidManifest, match=rf"spec.task: {task} for {model}: contradicts the name of the model"):
        parse(minimal(model={"name": model}, task=task))


def test_unknown_task_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidManifest, match=r"spec.task: .*detect.*segment.*depth"):
        parse(minimal(task="segmentation"))


@pytest.mark.parametrize(
    ("results", "shown", "score"),
    [
        ({"mAP50(B)": 0.9, "mAP50-95(B)": 0.7}, {"mAP50": 0.9, "mAP50-95": 0.7}, ("mAP50-95", 0.7)),
        (
            {"mAP50(B)": 0.9, "mAP50-95(B)": 0.7, "mAP50(M)": 0.8, "mAP50-95(M)": 0.6},
            {"box mAP50-95": 0.7, "mask mAP50-95": 0.6},
            ("mask mAP50-95", 0.6),
        ),
        (
            {"mAP50-95(B)": 0.7, "mAP50-95(P)": 0.6},
            {"box mAP50-95": 0.7, "pose mAP50-95": 0.6},
            ("pose mAP50-95", 0.6),
        ),
        ({"accuracy_top1": 0.9, "accuracy_top5": 1.0}, {"top-1": 0.9, "top-5": 1.0}, ("top-1", 0.9)),
        ({"mIoU": 0.4, "pixel_acc": 0.9}, {"mIoU": 0.4, "pixel accuracy": 0.9}, ("mIoU", 0.4)),
        ({"delta1": 0.9, "abs_rel": 0.1, "rmse": 2.0}, {"delta1": 0.9, "abs rel": 0.1}, ("delta1", 0.9)),
        ({}, {}, None),
    ],
)
def test_metrics_for_people(
    results: dict[str, float], shown: dict[str, float], score: tuple[str, float] | None
) -> None:
    metrics = metrics_by_name({f"metrics/{name}": value for name, value in results.items()} | {"val/loss": 3.0})
    assert metrics == results
    assert labelled(metrics) == shown
    assert named_score(metrics) == score


def test_metrics_that_are_not_finite_are_left_out() -> None:
    assert metrics_by_name({"metrics/mIoU": math.nan, "metrics/pixel_acc": 1.0, "lr/pg0": 1.0}) == {"pixel_acc": 1.0}
    assert main_metric({"pixel_acc": 1.0}) is None


def test_result_with_metrics_keeps_the_fields_of_boxes() -> None:
    result = Result(weights="pvc://x/weights/best.pt")
    result.set_metrics({"mAP50(B)": 0.9, "mAP50-95(B)": 0.71239, "mAP50-95(M)": 0.61239})
    assert (result.main_metric, result.score, result.map50, result.map) == ("mAP50-95(M)", 0.6124, 0.9, 0.71239)


def test_report_of_an_older_trainer_shows_its_metrics() -> None:
    progress = Progress.model_validate({"map50": 0.9, "map": 0.7})
    assert progress.labelled == {"mAP50": 0.9, "mAP50-95": 0.7}
    assert progress.model_dump(exclude_none=True, by_alias=True).keys() >= {"map50", "map"}


@pytest.mark.parametrize("task", [task for task in Task if task is not Task.DETECT])
def test_example_of_each_task_is_valid(task: Task) -> None:
    job = parse(load(EXAMPLES / f"digits-{task}.yaml"))
    assert job.spec.stated_task == task


@pytest.mark.parametrize("metrics", [{"a\nb": 1.0}, {"x" * 41: 1.0}, {f"m{i}": 1.0 for i in range(33)}])
def test_metrics_beyond_the_bounds_are_refused(metrics: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="metrics"):
        Progress.model_validate({"metrics": metrics})
