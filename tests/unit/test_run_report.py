"""Stories, advice and pages: what they hold, and what of it is escaped. That a browser draws them is in tests/e2e."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.bench_data import WATTS, job, record, survey

from yolojob.api.job import YoloTrainingJob
from yolojob.api.status import Attempt, Cost, Timing, YoloTrainingJobStatus
from yolojob.client import ClusterError
from yolojob.estimation.target import Target
from yolojob.reports import advice, comparison, comparison_page, run_files, run_report, run_report_page


def run_folder(folder: Path, epochs: int = 3) -> Path:
    """A run of two ranks, the second of which is slower; four steps an epoch."""
    rows = ["epoch,time,train/box_loss,metrics/mAP50(B),metrics/mAP50-95(B)"]
    for rank in (0, 1):
        (folder / "trace" / f"rank-{rank}").mkdir(parents=True)
        at = 1000.0
        for epoch in range(epochs):
            lines = []
            if epoch == 0:
                lines.append({"epoch": 0, "step": 0, "start": at, "seconds": {"startup": 5.0}})
                at += 5.0
            for step in range(4):
                forward = 0.1 if rank == 0 else 0.15
                seconds = {"data_wait": 0.6, "forward": forward, "backward": 0.2, "all_reduce": 0.25 - forward}
                lines.append({"epoch": epoch, "step": step, "start": at, "images": 16, "seconds": seconds})
                at += sum(seconds.values())
            lines.append({"epoch": epoch, "step": 4, "start": at, "seconds": {"validation": 0.5}})
            at += 0.5
            path = folder / "trace" / f"rank-{rank}" / f"epoch-{epoch + 1:05d}.attempt-1.jsonl"
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows += [f"{n},{n * 4.7},1.5,{0.3 * n},{0.2 * n}" for n in range(1, epochs + 1)]
    (folder / "results.csv").write_text("\n".join(rows) + "\n")
    return folder


class TestStory:
    def test_a_run_by_its_own_record(self, tmp_path: Path) -> None:
        story = run_report.from_folder(run_folder(tmp_path / "digits"))
        assert story.name == "digits"
        assert story.parts == pytest.approx(
            {"startup": 5.0, "data_wait": 7.2, "forward": 1.2, "backward": 2.4, "all_reduce": 1.8, "validation": 1.5}
        )
        assert story.rates == pytest.approx([16 / 1.05] * 3)
        assert story.reached == pytest.approx((0.9, 0.6))
        assert str(story.advice[0]) == "data wait is 38%: cache: ram would save about 6 s"
        assert any("rank 1 computes 1.17 times as long" in str(a) for a in story.advice)

    def test_half_a_line_at_the_end_is_what_a_killed_run_leaves(self, tmp_path: Path) -> None:
        folder = run_folder(tmp_path)
        with (folder / "trace" / "rank-0" / "epoch-00003.attempt-1.jsonl").open("a") as file:
            file.write('{"epoch":2,"st')
        assert len(run_files.traces(folder)) == 2 * (1 + 3 * 5)

    @pytest.mark.parametrize(
        ("file", "text", "words"),
        [
            ("results.csv", "", "results.csv not found"),
            ("results.csv", "epoch,time\nx,1\n", "damaged"),
            ("trace/rank-0/epoch-00001.attempt-1.jsonl", "[]\n", "epoch-00001.attempt-1.jsonl:1: malformed trace line"),
            ("trace/rank-0/epoch-00001.attempt-1.jsonl", "nonsense\n", "malformed trace line"),
        ],
    )
    def test_what_is_damaged_is_named(self, tmp_path: Path, file: str, text: str, words: str) -> None:
        folder = run_folder(tmp_path)
        (folder / file).write_text(text)
        if not text:
            (folder / file).unlink()
        with pytest.raises(run_files.NoRun, match=words):
            run_report.from_folder(folder)

    def test_a_job_by_its_status(self) -> None:
        told = job()
        attempts = [
            Attempt(attempt=1, workers=2, pod_seconds=100.0, per_worker_hour=3.6, currency="USD", cost=0.1),
            Attempt(attempt=2, workers=1, pod_seconds=50.0, per_worker_hour=3.6, currency="USD", cost=0.05),
        ]
        timing = Timing(
            queued_seconds=10.0, image_pull_seconds=30.0, training_seconds={"forward": 60.0}, running_seconds=60.0
        )
        told.status = YoloTrainingJobStatus(
            timing=timing, history=attempts, cost=Cost(currency="USD", so_far=0.15, price_source="told")
        )
        story = run_report.from_status(told)
        assert story.parts["queued"] == 10.0
        recomputed = sum(a.pod_seconds * (a.per_worker_hour or 0) / 3600 for a in attempts)
        assert story.cost is not None
        assert story.cost.so_far == pytest.approx(recomputed)
        assert run_report.cost_description(story.cost) == "0.150000 USD: told"
        assert any("image pull is" in str(a) for a in story.advice)

    def test_no_price_is_said(self) -> None:
        told = job()
        told.status = YoloTrainingJobStatus(
            timing=Timing(queued_seconds=1.0), cost=Cost(price_source="no price: set it")
        )
        assert run_report.cost_description(run_report.from_status(told).cost) == "no price: set it"
        assert "no price" in run_report.cost_description(None)

    def test_a_job_that_has_not_begun(self) -> None:
        with pytest.raises(ClusterError, match="has not started"):
            run_report.from_status(YoloTrainingJob.model_validate(job().to_json()))


class TestAdvice:
    def test_a_run_in_which_nothing_stands_out(self) -> None:
        assert advice.suggest({"forward": 50.0, "backward": 45.0, "data_wait": 5.0}, {0: 0.1, 1: 0.101}, None) == []

    def test_the_most_valuable_first(self) -> None:
        found = advice.suggest({"forward": 10.0, "data_wait": 30.0, "validation": 60.0}, {}, job().spec)
        assert [a.change.partition(":")[0] for a in found] == ["val", "cache"]

    def test_images_that_are_cached_need_no_cache(self) -> None:
        spec = job(train={"cache": "ram", "epochs": 5}).spec
        assert "loader processes" in advice.suggest({"forward": 10.0, "data_wait": 30.0}, {}, spec)[0].change


def compared(tmp_path: Path, **assumed: Any) -> comparison.Comparison:
    known = survey(record(energy=WATTS), record("prod", per_worker_hour=0.5, currency="USD"), assumed=assumed)
    targets = [
        Target(text="local"),
        Target(text="prod", context="prod"),
        Target(text="gke:g2-standard-4x2", machine="g2-standard-4", workers=2),
    ]
    named = job()
    named.metadata.name = "</script><b>x"
    return comparison.build_comparison(
        named, known, [known.option(t) for t in targets], run_folder(tmp_path / "curve", epochs=20)
    )


def test_a_comparison_has_all_that_was_asked(tmp_path: Path) -> None:
    found = compared(tmp_path, purchasePrice=1500)
    plain = comparison.to_json(found)
    assert {o["name"] for o in plain["options"]} == {"local", "prod", "2 × g2-standard-4 (gke)"}
    for option in plain["options"]:
        assert option["seconds"]["low"] <= option["seconds"]["value"] <= option["seconds"]["high"]
        assert option["costPerEpoch"] == pytest.approx(option["cost"]["value"] / 20)
    assert "cheaper than" in plain["breakEven"]
    comparison_page.write_comparison_page(found, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    for heading in (
        "Where the time goes",
        "Where the money goes",
        "Time against money",
        "With more workers",
        "Buy or rent",
        "Energy",
    ):
        assert f"<h2>{heading}</h2>" in text
    assert "Cost of reaching an mAP" in text
    assert "</script><b>x" not in text, "a job's name is text"
    assert "http://" not in text.split("</head>")[1]
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")


def test_a_report_page(tmp_path: Path) -> None:
    run_report_page.write_run_report_page(
        run_report.from_folder(run_folder(tmp_path / "run")), tmp_path / "report.html"
    )
    text = (tmp_path / "report.html").read_text()
    for heading in (
        "Time by part",
        "Phases by epoch",
        "Accuracy over time",
        "Stragglers",
        "What to change first",
    ):
        assert f"<h2>{heading}</h2>" in text
