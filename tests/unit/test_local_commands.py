"""The commands `run`, `validate` and `crd` as processes: output, exit codes, and what they leave behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support import ROOT, eventually
from support.cli import COMMAND, QUICK, call, manifest, small

from yolojob.api.time_parts import TimeGroup, TimePart

pytestmark = pytest.mark.processes


def test_help_lists_commands_and_exit_codes() -> None:
    text = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, check=True).stdout
    for command in ("run", "validate", "crd"):
        assert command in text
    assert "Exit codes" in text


def test_crd_prints_the_committed_definition(tmp_path: Path, cache: Path) -> None:
    assert call(tmp_path, cache, "crd").stdout == (ROOT / "manifests" / "crd.yaml").read_text()


def test_validate_of_example_prints_a_summary(tmp_path: Path, cache: Path) -> None:
    done = call(tmp_path, cache, "validate", ROOT / "manifests" / "examples" / "digits.yaml")
    assert done.returncode == 0
    assert "2 worker(s) × 1 process(es), global batch 16" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "job.yaml"),
        ("bench", "job.yaml"),
        ("estimate", "job.yaml"),
        ("compare", "job.yaml", "--on", "local"),
        ("report", "."),
    ],
    ids=lambda arguments: arguments[0],
)
def test_command_without_object_output_refuses_output_name(
    tmp_path: Path, cache: Path, arguments: tuple[str, ...]
) -> None:
    """`-o name` prints names of Kubernetes objects, and these commands print none."""
    manifest(tmp_path, small())
    done = call(tmp_path, cache, *arguments, "-o", "name")
    assert done.returncode == 2, done.stdout
    assert "'name' is not one of 'text', 'wide', 'json', 'yaml'" in " ".join(done.stderr.replace("│", " ").split())
    assert done.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["job.yaml"]


def broken(**spec: Any) -> dict[str, Any]:
    """Returns the small job with other fields of the spec."""
    return small("broken", **spec)


INVALID = {
    "misspelt": (broken(train={"mosiac": 1.0}), "spec.train.mosiac: unknown field; did you mean mosaic?"),
    "batch": (broken(workers={"replicas": 3}), "spec.train.batch: 8 images for 3 processes"),
    "name": ({**broken(), "metadata": {"name": "Not_A_Label"}}, "metadata.name: Not_A_Label: must be a DNS label"),
    "model": (
        broken(model={"name": "yolo99n.yaml"}),
        "spec.model.name: yolo99n.yaml: Ultralytics has no architecture of this name",
    ),
    "dataset": (broken(dataset={"uri": "file:///nowhere/at/all"}), "there is no folder or archive /nowhere/at/all"),
    "config": (broken(dataset={"uri": "builtin://digits", "config": "coco.yaml"}), "coco.yaml: not in"),
    "weights": (
        broken(model={"name": "best.pt", "weights": {"uri": "file:///nowhere"}}),
        "there is no .pt or .safetensors file and no folder",
    ),
    "precision": (broken(train={**QUICK, "amp": "fp16"}), "fp16 needs a GPU"),
    "gpu": (broken(workers={"gpu": {"count": 1}}), "spec.workers.gpu: 1 process(es) need one GPU each"),
}
"""(manifest, expected message) of jobs that are refused."""


@pytest.mark.parametrize("case", INVALID)
def test_run_of_invalid_job_names_the_fault_and_leaves_no_files(tmp_path: Path, cache: Path, case: str) -> None:
    document, message = INVALID[case]
    done = call(tmp_path, cache, "run", manifest(tmp_path, document), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["job.yaml"]


def test_run_without_disk_space_is_refused_before_the_training(tmp_path: Path, cache: Path) -> None:
    """On a file system of 2 MiB. Who may not mount one gets a folder without write permission instead."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True, check=False)
    mounted = mount.returncode == 0
    if not mounted:
        disk.chmod(0o500)
    try:
        done = call(tmp_path, cache, "run", manifest(tmp_path, small(storage={"uri": f"file://{disk}/run"})))
        assert done.returncode == 2
        expected = "MiB left, but checkpoints and weights need about" if mounted else "cannot be written"
        assert expected in done.stderr
        assert list(disk.iterdir()) == []
    finally:
        if mounted:
            subprocess.run(["umount", disk], check=True)


def test_run_prints_progress_and_summary(tmp_path: Path, cache: Path) -> None:
    done = call(tmp_path, cache, "run", manifest(tmp_path, small()))
    assert done.returncode == 0, done.stderr + done.stdout
    assert "epoch 1/2" in done.stdout
    for part in ("startup", "data wait", "forward", "backward", "optimizer", "validation", "checkpoint"):
        assert part in done.stdout
    assert str(tmp_path / "runs" / "small" / "weights" / "best.pt") in done.stdout
    again = call(tmp_path, cache, "run", manifest(tmp_path, small()))
    assert again.returncode == 0
    assert "To train from the start again, remove" in again.stdout


def test_run_with_json_output_prints_the_report(tmp_path: Path, cache: Path) -> None:
    document = small(workers={"replicas": 2}, storage={"uri": "pvc://claim/deep"})
    done = call(tmp_path, cache, "run", manifest(tmp_path, document), "--output", "json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["state"] == "Succeeded"
    assert report["worldSize"] == 2
    assert Path(report["result"]["weights"]) == tmp_path / "volumes" / "claim" / "deep" / "weights" / "best.pt"
    assert Path(report["result"]["weights"]).exists()
    timing = report["timing"]
    steps = {part for part in TimePart if part.group is TimeGroup.STEP}
    assert set(timing["trainingSeconds"]) == steps
    assert all(seconds > 0 for seconds in timing["trainingSeconds"].values())


def test_run_interrupted_by_ctrl_c_resumes_with_the_same_command(tmp_path: Path, cache: Path) -> None:
    document = small(train={**QUICK, "epochs": 6, "fraction": 100}, workers={"replicas": 2})
    path = manifest(tmp_path, document)
    env = {**os.environ, "YOLOJOB_CACHE_DIR": str(cache), "YOLOJOB_CPUS": "1"}
    first = subprocess.Popen(
        [*COMMAND, "run", str(path)],
        cwd=tmp_path,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell's background job, in which the tests may run, ignores SIGINT, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    checkpoints = tmp_path / "runs" / "small" / "checkpoints"
    eventually(lambda: list(checkpoints.glob("*.pt")), "a checkpoint", seconds=120)
    first.send_signal(signal.SIGINT)
    _, errors = first.communicate(timeout=60)
    assert first.returncode == 130, errors
    assert "run the same command to resume" in errors
    assert not list(tmp_path.glob("runs/small/**/*.tmp"))
    done = call(tmp_path, cache, "run", path, "--output", "json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["resumedFrom"].startswith("epoch ")
    assert report["progress"]["epoch"] == 6
    rows = (tmp_path / "runs" / "small" / "results.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == [str(epoch) for epoch in range(1, 7)]
