"""The checks that need a GPU: their table, their list, and how they attribute kernels to phases."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from gpu.checks import Check, correctness, measurements
from gpu.process_tree import kill_tree
from gpu.scale import Scale, scale
from gpu.table import Row, failure, figure, parse, report, summary, verdict, within
from support import ROOT, eventually

RUN = ROOT / "tests" / "gpu" / "run.sh"


@pytest.fixture(params=["0", "1"], ids=["gpu", "cpu"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Scale:
    monkeypatch.setenv("GPU_CHECKS_ON_CPU", request.param)
    scale.cache_clear()
    return scale()


def test_checks_have_different_names_and_logs(size: Scale) -> None:
    checks = [*correctness(size), *measurements(size)]
    assert len({check.name for check in checks}) == len({check.file for check in checks}) == len(checks)


def test_every_check_names_a_function_of_its_module(size: Scale) -> None:
    for check in [*correctness(size), *measurements(size)]:
        source = (ROOT / "tests" / "gpu" / f"{check.module}.py").read_text()
        assert f"\ndef {check.function}(" in source
        registered = source.rpartition("check_process.main(")[2].partition(")")[0]
        assert check.function in [name.strip() for name in registered.split(",")]


def test_command_of_a_check_holds_its_options() -> None:
    check = Check("a b, c", "speed", "loaders", 1, options={"batch": 4})
    assert check.command[1:] == ["-m", "gpu.speed", "loaders", '{"batch": 4}']
    assert check.file == "a-b-c.txt"


def test_reported_rows_are_read_again_and_the_last_report_counts(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [figure("speed", 3), verdict("correct", "yes", "yes", True), within("ratio", 2.0, (0.5, 1.5))]
    report(rows[:1])
    print("other output")
    report(rows)
    assert parse(capsys.readouterr().out) == rows
    assert parse("killed before it reported") == []


def test_summary_names_failed_rows_only() -> None:
    rows = [figure("speed", 3), verdict("correct", "yes", "yes", True), verdict("wrong", 1, "2", False)]
    assert summary(rows).splitlines() == ["1 passed, 1 failed", str(rows[2])]
    assert str(rows[2]).startswith("FAILED wrong")


def test_error_of_a_measurement_is_a_failed_row(capsys: pytest.CaptureFixture[str]) -> None:
    row = failure("speed", RuntimeError("no kernel"))
    assert row == Row("speed", "RuntimeError: no kernel", "no error", False)
    assert "RuntimeError: no kernel" in capsys.readouterr().err


@pytest.mark.torch
def test_time_of_kernels_is_attributed_to_phases_and_overlaps_count_once() -> None:
    from gpu.profiling import busy_microseconds, overlap

    phase = {"ts": 10.0, "dur": 10.0}
    assert overlap({"ts": 5.0, "dur": 10.0}, phase) == 5.0
    assert overlap({"ts": 25.0, "dur": 10.0}, phase) == 0.0
    kernels = [{"ts": 5.0, "dur": 10.0}, {"ts": 0.0, "dur": 10.0}, {"ts": 30.0, "dur": 1.0}]
    assert busy_microseconds(kernels) == 16.0


@pytest.mark.processes
def test_killed_check_leaves_no_training_behind(tmp_path: Path) -> None:
    grandchild = tmp_path / "pid"
    code = (
        "import pathlib, signal, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'], start_new_session=True)\n"
        f"pathlib.Path({str(grandchild)!r}).write_text(str(child.pid))\n"
        "signal.pause()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    pid = eventually(lambda: int(grandchild.read_text() or 0) if grandchild.exists() else 0, "the grandchild runs")
    kill_tree(process)
    state = Path(f"/proc/{pid}/stat")
    eventually(lambda: not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z", "it has ended")


@pytest.mark.processes
@pytest.mark.torch
def test_checks_without_a_gpu_are_refused_with_the_option_for_it(tmp_path: Path) -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [str(RUN), "--only", "gradients", "--out", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stdout
    assert "torch finds no GPU: --cpu runs the checks without one" in done.stderr


@pytest.mark.processes
def test_unknown_name_is_refused_with_the_way_to_the_names() -> None:
    done = subprocess.run([RUN, "--cpu", "--only", "gradient,rank5"], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "rank5: no check has such a name; see --list" in done.stderr
    assert "gradient:" not in done.stderr
