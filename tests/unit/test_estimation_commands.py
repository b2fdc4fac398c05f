"""The commands `bench`, `estimate`, `compare` and `report` as processes, on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import kubeconfig
from support.cli import QUICK, call, manifest, small

from yolojob.estimation.bench_records import Record

pytestmark = pytest.mark.processes
QUICK_BENCH = ("--seconds", "6")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> tuple[Path, Any]:
    """Benches the small job once for all tests that only read the result: (folder of the manifest, printed record)."""
    folder = tmp_path_factory.mktemp("measured")
    manifest(folder, small())
    done = call(folder, cache, "bench", "job.yaml", *QUICK_BENCH, "--output", "json")
    assert done.returncode == 0, done.stderr
    (record,) = json.loads(done.stdout)
    return folder, record


def test_bench_measures_every_part_of_a_training(measured: tuple[Path, Any]) -> None:
    folder, record = measured
    (file,) = (folder / "measurements").iterdir()
    assert Record.model_validate_json(file.read_text()) == Record.model_validate(record)
    measurement = record["measurement"]
    assert measurement["tookSeconds"] > 0
    (steps,) = measurement["steps"]
    assert {"data_wait", "forward", "loss", "backward"} <= set(steps["seconds"])
    for name in ("startupSeconds", "updateSeconds", "validationSeconds", "checkpointSeconds"):
        assert measurement[name] > 0, name
    whole, half = measurement["microbatchPasses"]
    assert whole["images"] == 2 * half["images"]
    assert half["seconds"] > 0
    assert half["sharedSeconds"] > 0
    assert measurement["link"]["between"] == "processes"
    assert measurement["link"]["bytesPerSecond"] > 1e6
    assert measurement["rates"]["samplesPerCore"] > 1
    assert measurement["rates"]["diskRead"] > 1e6
    assert measurement["host"]["cores"] >= 1
    assert not (folder / "runs").exists(), "a bench leaves no run behind"


def test_bench_with_two_workers_measures_the_all_reduce(tmp_path: Path, cache: Path) -> None:
    # A bench measures a validation also in a job that validates rarely.
    path = manifest(tmp_path, small(train={**QUICK, "epochs": 4, "val_period": 4}))
    done = call(tmp_path, cache, "bench", path, "--on", "localx2", *QUICK_BENCH, "-o", "json")
    assert done.returncode == 0, done.stderr
    measurement = json.loads(done.stdout)[0]["measurement"]
    assert (measurement["workers"], measurement["worldSize"], measurement["link"]["between"]) == (2, 2, "workers")
    assert measurement["steps"][0]["seconds"]["all_reduce"] > 0


def test_estimate_without_bench_predicts_every_machine(tmp_path: Path, cache: Path) -> None:
    done = call(tmp_path, cache, "estimate", manifest(tmp_path, small()), "--output", "json")
    assert done.returncode == 0, done.stderr
    estimate = json.loads(done.stdout)
    assert estimate["modelProfile"]["parameters"] > 100_000
    assert estimate["data"]["images"] > 0
    assert len(estimate["options"]) >= 7
    assert {option["seconds"]["basis"] for option in estimate["options"]} == {"predicted"}
    assert all(option["cost"]["value"] > 0 for option in estimate["options"])
    text = call(tmp_path, cache, "estimate", "job.yaml", "--on", "g2-standard-4").stdout
    for heading in ("parameters, ", "GFLOPs", "Memory for training", "Basis: 1 predicted"):
        assert heading in text
    wide = call(tmp_path, cache, "estimate", "job.yaml", "-o", "wide", COLUMNS="80").stdout
    narrow = call(tmp_path, cache, "estimate", "job.yaml", COLUMNS="80").stdout
    for option in estimate["options"]:
        line = next(line for line in narrow.splitlines() if line.startswith(option["name"]))
        assert len(line) <= 80
        whole = next(line for line in wide.splitlines() if line.startswith(option["name"]))
        assert whole.startswith(line.rstrip())
        assert whole.split()[-2:] == ["kWh", "predicted"]


class TestCompare:
    ARGUMENTS = (
        *("compare", "job.yaml", "--measure", "never"),
        *("--on", "local", "--on", "localx2", "--on", "gke:g2-standard-4"),
    )

    def test_compare_uses_the_bench_where_it_applies(self, measured: tuple[Path, Any], cache: Path) -> None:
        folder, _ = measured
        done = call(folder, cache, *self.ARGUMENTS, "--assume", "watts=50", "-o", "json")
        assert done.returncode == 0, done.stderr
        options = {option["target"]: option for option in json.loads(done.stdout)["options"]}
        assert options["local"]["seconds"]["basis"] == "measured"
        assert options["localx2"]["seconds"]["basis"] == "scaled from a measurement"
        assert options["gke:g2-standard-4"]["parts"]["forward"]["basis"] == "predicted"
        expected_kwh = 50 * options["local"]["seconds"]["value"] / 3.6e6
        assert options["local"]["kwh"]["value"] == pytest.approx(expected_kwh, rel=0.01)
        assert (folder / "compare.html").stat().st_size > 1e6
        assert (folder / "compare.png").stat().st_size > 10_000

    def test_compare_without_power_counter_prints_no_price(self, measured: tuple[Path, Any], cache: Path) -> None:
        folder, _ = measured
        assert "no price" in call(folder, cache, *self.ARGUMENTS).stdout


def test_report_of_local_run_has_every_epoch(tmp_path: Path, cache: Path) -> None:
    assert call(tmp_path, cache, "run", manifest(tmp_path, small())).returncode == 0
    done = call(tmp_path, cache, "report", "runs/small", "-o", "json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["seconds"] == pytest.approx(sum(report["parts"].values()), abs=0.01)
    assert [epoch["epoch"] for epoch in report["epochs"]] == [1, 2]
    assert (tmp_path / "report.html").exists()


INVALID = {
    "batch": (
        small("huge", train={"epochs": 1, "batch": 400, "imgsz": 2048}),
        ("bench", "job.yaml"),
        "GiB are missing; the largest batch that fits is",
    ),
    "machine": (small(), ("compare", "job.yaml", "--on", "g5.xlarg"), "g5.xlarge"),
    "context": (small(), ("bench", "job.yaml", "--on", "prod"), "the catalogue has no machine prod"),
    "not measurable": (small(), ("bench", "job.yaml", "--on", "g5.xlarge"), "cannot benchmark a catalogue machine"),
    "not measured": (small(), ("compare", "job.yaml", "--on", "local", "--measure", "never"), "not measured yet"),
    "assumption": (small(), ("estimate", "job.yaml", "--assume", "years=0"), "--assume years=0.0"),
    "catalogue": (small(), ("estimate", "job.yaml", "--catalogue", "none.yaml"), "none.yaml"),
    "run": (small(), ("report", "."), "no trace"),
    "manifest": (small(train={"batsch": 1}), ("estimate", "job.yaml"), "spec.train.batsch: unknown field"),
    "curve": (small(), ("compare", "job.yaml", "--on", "g5.xlarge", "--curve", "."), "results.csv not found"),
}
"""(manifest, arguments, expected message) of commands that are refused."""


@pytest.mark.parametrize("case", INVALID)
def test_command_with_invalid_input_names_the_fault(tmp_path: Path, cache: Path, case: str) -> None:
    document, arguments, message = INVALID[case]
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(document))
    (tmp_path / "kubeconfig").write_text("")
    done = call(tmp_path, cache, *arguments, KUBECONFIG=str(tmp_path / "kubeconfig"))
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert not list(tmp_path.glob("*.html"))


def test_bench_on_unreachable_cluster_is_an_error(tmp_path: Path, cache: Path) -> None:
    config = kubeconfig(tmp_path / "kubeconfig", "gone", gone="default")
    path = manifest(tmp_path, small())
    done = call(tmp_path, cache, "bench", path, "--on", "gone", KUBECONFIG=str(config))
    assert done.returncode == 2
    assert "error: the cluster does not answer" in done.stderr
