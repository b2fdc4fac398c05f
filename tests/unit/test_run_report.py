"""Reports on a run, from its folder or from a job's status, and their page. tests/e2e opens the page in a browser."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.bench_data import job
from support.run_folders import write_run

from yolojob.api.job import YoloTrainingJob
from yolojob.api.status import Attempt, Cost, Timing, YoloTrainingJobStatus
from yolojob.api.time_parts import TimePart
from yolojob.client import ClusterError
from yolojob.reports import run_files, run_report, run_report_page


class TestFromFolder:
    def test_from_folder_adds_up_the_trace(self, tmp_path: Path) -> None:
        report = run_report.from_folder(write_run(tmp_path / "digits"))
        assert report.name == "digits"
        assert report.parts == pytest.approx(
            {"startup": 5.0, "data_wait": 7.2, "forward": 1.2, "backward": 2.4, "all_reduce": 1.8, "validation": 1.5}
        )
        assert report.rates == pytest.approx([16 / 1.05] * 3)
        assert report.reached == pytest.approx({"mAP50": 0.9, "mAP50-95": 0.6})
        assert report.score is not None
        assert report.score[0] == "mAP50-95"
        assert "data wait is 38%: cache: ram would save about 2 s" in map(str, report.advice)
        assert any("rank 1 takes 1.17 times as long" in str(advice) for advice in report.advice)

    def test_traces_with_incomplete_last_line_skip_it(self, tmp_path: Path) -> None:
        """A trainer that is killed leaves such a line."""
        folder = write_run(tmp_path)
        with (folder / "trace" / "rank-0" / "epoch-00003.attempt-1.jsonl").open("a") as file:
            file.write('{"epoch":2,"st')
        assert len(run_files.traces(folder)) == 2 * (1 + 3 * 5)

    @pytest.mark.parametrize(
        ("file", "text", "message"),
        [
            ("results.csv", "", "results.csv not found"),
            ("results.csv", "epoch,time\nx,1\n", "damaged"),
            ("trace/rank-0/epoch-00001.attempt-1.jsonl", "[]\n", "epoch-00001.attempt-1.jsonl:1: malformed trace line"),
            ("trace/rank-0/epoch-00001.attempt-1.jsonl", "nonsense\n", "malformed trace line"),
        ],
    )
    def test_from_folder_with_damaged_file_names_it(self, tmp_path: Path, file: str, text: str, message: str) -> None:
        folder = write_run(tmp_path)
        (folder / file).write_text(text)
        if not text:
            (folder / file).unlink()
        with pytest.raises(run_files.NoRun, match=message):
            run_report.from_folder(folder)


class TestFromStatus:
    def test_from_status_has_waits_and_cost(self) -> None:
        finished = job()
        attempts = [
            Attempt(attempt=1, workers=2, pod_seconds=100.0, per_worker_hour=3.6, currency="USD", cost=0.1),
            Attempt(attempt=2, workers=1, pod_seconds=50.0, per_worker_hour=3.6, currency="USD", cost=0.05),
        ]
        timing = Timing(
            queued_seconds=10.0, image_pull_seconds=30.0, training_seconds={"forward": 60.0}, running_seconds=60.0
        )
        finished.status = YoloTrainingJobStatus(
            timing=timing, history=attempts, cost=Cost(currency="USD", so_far=0.15, price_source="a list")
        )
        report = run_report.from_status(finished)
        assert report.parts[TimePart.QUEUED] == 10.0
        assert report.cost is not None
        expected = sum(a.pod_seconds * (a.per_worker_hour or 0) / 3600 for a in attempts)
        assert report.cost.so_far == pytest.approx(expected)
        assert run_report.cost_description(report.cost) == "0.150000 USD: a list"
        assert any("image pull is" in str(advice) for advice in report.advice)

    def test_cost_description_without_price_says_what_is_missing(self) -> None:
        finished = job()
        finished.status = YoloTrainingJobStatus(
            timing=Timing(queued_seconds=1.0), cost=Cost(price_source="no price: set it")
        )
        assert run_report.cost_description(run_report.from_status(finished).cost) == "no price: set it"
        assert "no price" in run_report.cost_description(None)

    def test_from_status_of_job_that_has_not_started_is_refused(self) -> None:
        with pytest.raises(ClusterError, match="has not started"):
            run_report.from_status(YoloTrainingJob.model_validate(job().to_json()))


def test_run_report_page_has_its_sections(tmp_path: Path) -> None:
    report = run_report.from_folder(write_run(tmp_path / "run"))
    run_report_page.write_run_report_page(report, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    for heading in (
        "Time by part",
        "Phases by epoch",
        "Accuracy over time",
        "Stragglers",
        "What to change first",
    ):
        assert f"<h2>{heading}</h2>" in text


def test_page_of_a_run_of_another_task_shows_the_metrics_that_each_epoch_has(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "depths")
    rows = ["epoch,time,train/dlog_loss,metrics/delta1,metrics/abs_rel", "1,4,1.5,0.5,0.2", "2,8,1.4,0.6,", "3,9,1,,"]
    (folder / "results.csv").write_text("\n".join(rows) + "\n")
    report = run_report.from_folder(folder)
    assert report.score == ("delta1", 0.6)
    assert report.reached == {"delta1": 0.6}
    run_report_page.write_run_report_page(report, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "Accuracy over time" in text
    assert "abs rel" in text
