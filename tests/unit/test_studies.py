"""bench, estimate, compare and report as their users call them, on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import kubeconfig
from support.cli import call, manifest, small

from yolojob.estimation.bench_records import Record

pytestmark = pytest.mark.slow
QUICK_BENCH = ("--seconds", "6")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> tuple[Path, Any]:
    """A folder with a manifest and the measurement of it."""
    folder = tmp_path_factory.mktemp("study")
    manifest(folder, small())
    done = call(folder, cache, "bench", "job.yaml", *QUICK_BENCH, "--output", "json")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)
    return folder, found


def test_a_bench_measures_all_of_a_training(measured: tuple[Path, Any]) -> None:
    folder, found = measured
    (file,) = (folder / "measurements").iterdir()
    assert Record.model_validate_json(file.read_text()) == Record.model_validate(found)
    m = found["measurement"]
    assert m["tookSeconds"] < 60
    (steps,) = m["steps"]
    assert {"data_wait", "forward", "loss", "backward"} <= set(steps["seconds"])
    for name in ("startupSeconds", "updateSeconds", "validationSeconds", "checkpointSeconds"):
        assert m[name] > 0, name
    whole, half = m["microbatchPasses"]
    assert whole["images"] == 2 * half["images"]
    assert half["sharedSeconds"] > 0.5 * half["seconds"]
    assert m["link"]["between"] == "processes"
    assert m["link"]["bytesPerSecond"] > 1e6
    assert m["rates"]["samplesPerCore"] > 1
    assert m["rates"]["diskRead"] > 1e6
    assert m["host"]["cores"] >= 1
    assert not (folder / "runs").exists(), "nothing is kept"


def test_two_workers_reduce_for_real(tmp_path: Path, cache: Path) -> None:
    done = call(tmp_path, cache, "bench", manifest(tmp_path, small()), "--on", "localx2", *QUICK_BENCH, "-o", "json")
    assert done.returncode == 0, done.stderr
    m = json.loads(done.stdout)[0]["measurement"]
    assert (m["workers"], m["worldSize"], m["link"]["between"]) == (2, 2, "workers")
    assert m["steps"][0]["seconds"]["all_reduce"] > 0


def test_an_estimate_needs_no_training(tmp_path: Path, cache: Path) -> None:
    done = call(tmp_path, cache, "estimate", manifest(tmp_path, small()), "--output", "json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["model_profile"]["parameters"] > 100_000
    assert found["data"]["images"] > 0
    assert len(found["options"]) >= 7
    assert {o["seconds"]["basis"] for o in found["options"]} == {"predicted"}
    assert all(o["cost"]["value"] > 0 for o in found["options"])
    text = call(tmp_path, cache, "estimate", "job.yaml", "--on", "g2-standard-4").stdout
    for words in ("parameters, ", "GFLOPs", "Memory for training", "predicted"):
        assert words in text


def test_operations_are_counted_as_ultralytics_counts_them() -> None:
    """yolo11n has 2.6 million parameters and 6.5 GFLOPs at 640 pixels (docs.ultralytics.com/models/yolo11)."""
    import torch
    from ultralytics.nn.tasks import DetectionModel
    from yolojob_trainer.model.profile import profile_model

    found = profile_model(DetectionModel("yolo11n.yaml", verbose=False), 640, torch.float32)
    assert found.parameters == pytest.approx(2.6e6, rel=0.02)
    assert found.gflops == pytest.approx(6.5, rel=0.05)


TRAIN_16 = """
import resource, torch
from ultralytics.nn.tasks import DetectionModel
from yolojob_trainer.model.profile import profile_model

torch.set_num_threads(1)
model = DetectionModel("yolo11n.yaml", verbose=False)
found = profile_model(model, 320, torch.float32)
model.train()
before = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
out = model(torch.rand(16, 3, 320, 320))
sum(t.sum() for value in out.values() for t in (value if isinstance(value, list) else [value])).backward()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(found.memory(16) - found.memory(0), peak - before)
"""


def test_memory_is_about_what_training_takes() -> None:
    """What a pass adds to the process, by the kernel's account."""
    done = subprocess.run([sys.executable, "-c", TRAIN_16], capture_output=True, text=True, check=True)
    said, real = map(float, done.stdout.split())
    assert 0.9 * real < said < 1.4 * real, (said / 2**20, real / 2**20)


def test_compare_takes_what_was_measured(measured: tuple[Path, Any], cache: Path) -> None:
    folder, _ = measured
    arguments = (
        "compare",
        "job.yaml",
        "--on",
        "local",
        "--on",
        "localx2",
        "--on",
        "gke:g2-standard-4",
        "--measure",
        "never",
    )
    done = call(folder, cache, *arguments, "--assume", "watts=50", "-o", "json")
    assert done.returncode == 0, done.stderr
    options = {o["target"]: o for o in json.loads(done.stdout)["options"]}
    assert options["local"]["seconds"]["basis"] == "measured"
    assert options["localx2"]["seconds"]["basis"] == "scaled from a measurement"
    assert options["gke:g2-standard-4"]["parts"]["forward"]["basis"] == "predicted"
    assert options["local"]["kwh"]["value"] == pytest.approx(
        50 * options["local"]["seconds"]["value"] / 3.6e6, rel=0.01
    )
    assert (folder / "compare.html").stat().st_size > 1e6
    assert (folder / "compare.png").stat().st_size > 10_000
    priceless = call(folder, cache, *arguments)
    assert "no price" in priceless.stdout


def test_a_report_of_a_run(tmp_path: Path, cache: Path) -> None:
    assert call(tmp_path, cache, "run", manifest(tmp_path, small())).returncode == 0
    done = call(tmp_path, cache, "report", "runs/small", "-o", "json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["seconds"] == pytest.approx(sum(found["parts"].values()), abs=0.01)
    assert [e["epoch"] for e in found["epochs"]] == [1, 2]
    assert (tmp_path / "report.html").exists()


def huge() -> dict[str, Any]:
    return small("huge", train={"epochs": 1, "batch": 400, "imgsz": 2048})


BAD = {
    "batch": (huge(), ("bench", "job.yaml"), "GiB are missing; the largest batch that fits is"),
    "machine": (small(), ("compare", "job.yaml", "--on", "g5.xlarg"), "g5.xlarge"),
    "context": (small(), ("bench", "job.yaml", "--on", "prod"), "the catalogue has no machine prod"),
    "not measurable": (small(), ("bench", "job.yaml", "--on", "g5.xlarge"), "a bench needs the machine itself"),
    "not measured": (small(), ("compare", "job.yaml", "--on", "local", "--measure", "never"), "not measured yet"),
    "assumption": (small(), ("estimate", "job.yaml", "--assume", "years=0"), "--assume years=0.0"),
    "catalogue": (small(), ("estimate", "job.yaml", "--catalogue", "none.yaml"), "none.yaml"),
    "run": (small(), ("report", "."), "no trace"),
    "manifest": (small(train={"batsch": 1}), ("estimate", "job.yaml"), "spec.train.batsch: unknown field"),
    "curve": (small(), ("compare", "job.yaml", "--on", "g5.xlarge", "--curve", "."), "no run that has trained"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_named(tmp_path: Path, cache: Path, what: str) -> None:
    document, arguments, words = BAD[what]
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(document))
    (tmp_path / "kubeconfig").write_text("")
    done = call(tmp_path, cache, *arguments, KUBECONFIG=str(tmp_path / "kubeconfig"))
    assert done.returncode == 2, done.stdout + done.stderr
    assert words in done.stderr
    assert not list(tmp_path.glob("*.html"))


def test_a_cluster_that_is_not_there(tmp_path: Path, cache: Path) -> None:
    config = kubeconfig(tmp_path / "kubeconfig", "gone", gone="default")
    path = manifest(tmp_path, small())
    done = call(tmp_path, cache, "bench", path, "--on", "gone", KUBECONFIG=str(config))
    assert done.returncode == 2
    assert "error: the cluster does not answer" in done.stderr
