"""Trials before the training choose and refuse settings, and the training itself is the same as without them."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from support import eventually, minimal
from support.processes import Gangs, tiny
from yolojob_trainer.data.sample_order import SampleOrder
from yolojob_trainer.distributed.world import World
from yolojob_trainer.training.autotune import Measured, Tuner
from yolojob_trainer.training.execution import ExecutionSettings

from yolojob.api.constants import ExitCode

pytestmark = pytest.mark.processes

ALONE = World(
    rank=0, world_size=1, local_rank=0, local_world_size=1, device=torch.device("cpu"), on_lost_peer=lambda _: None
)
FIRST = ExecutionSettings(amp="fp32", channels_last=True)


class Scripted(Tuner):
    """Takes its measurements from a table: setting -> (seconds per step, loss), or the error message."""

    room = 1000
    """Batches for which shared memory has room."""

    def __init__(self, table: dict[str, tuple[float, float] | str], seconds: float = 1e6, **spec: Any) -> None:
        run = tiny(replicas=1, **spec)
        pipeline: Any = SimpleNamespace(
            model=torch.nn.Linear(1, 1),
            run=run,
            device=torch.device("cpu"),
            order=SampleOrder(samples=100, batch=10, shards=1, seed=0),
            world=ALONE,
            args=SimpleNamespace(epochs=run.spec.train.epochs),
            loader_limit=lambda prefetch: self.room // prefetch,
        )
        super().__init__(pipeline, seconds, whole_job=True)
        self.table = table
        self.tried: list[str] = []

    def _configure(self, choice: ExecutionSettings) -> None:
        self.configured = choice

    def _measure(self) -> Measured:
        changed = {
            f"{k}={v}".lower()
            for k, v in dataclasses.asdict(self.configured).items()
            if v != dataclasses.asdict(FIRST)[k]
        }
        self.tried.append(" ".join(sorted(changed)))
        step, loss = 1.0, 100.0
        for setting in changed:
            result = self.table.get(setting, (1.0, 100.0))
            if isinstance(result, str):
                raise RuntimeError(result)
            step, loss = step * result[0], loss * result[1] / 100
        return Measured(step_seconds=step, loss=loss)


LONG = {"amp": "auto", "epochs": 10_000}


def test_tuner_keeps_faster_settings_and_builds_on_them() -> None:
    tuner = Scripted(
        {"amp=bf16": (0.5, 100.5), "cache=ram": (0.9, 100.0), "channels_last=false": (1.5, 100)}, train=LONG
    )
    choice, report = tuner.run(FIRST)
    assert choice == dataclasses.replace(FIRST, amp="bf16", cache="ram")
    assert tuner.configured == choice
    verdicts = {trial.settings: trial.verdict for trial in report.trials}
    assert verdicts["default"] == verdicts["amp=bf16"] == verdicts["cache=ram"] == "kept"
    assert verdicts["channels_last=false"] == "slower"
    assert verdicts["workers=1"] == "no gain"
    assert report.chosen["amp"] == "bf16"
    assert "amp=bf16 cache=ram" in tuner.tried, "the next setting is tried on top of what was kept"


def test_tuner_refuses_fast_settings_that_change_the_loss() -> None:
    choice, report = Scripted({"amp=bf16": (0.1, 103.0), "micro_batches=2": (0.1, float("nan"))}, train=LONG).run(FIRST)
    assert choice == FIRST
    verdicts = {trial.settings: trial.verdict for trial in report.trials}
    assert verdicts["amp=bf16"] == "refused: changes the loss by 3.0%"
    assert verdicts["micro_batches=2"].startswith("refused")


def test_tuner_reports_settings_that_fail_and_continues() -> None:
    choice, report = Scripted({"cache=ram": "no room", "amp=bf16": (0.5, 100.0)}, train=LONG).run(FIRST)
    assert choice.amp == "bf16"
    assert {t.settings: t.verdict for t in report.trials}["cache=ram"] == "failed: no room"


def test_tuner_does_not_try_settings_of_the_user() -> None:
    settings = {"amp": False, "channels_last": True, "cache": False, "workers": 0, "compile": False, "epochs": 10_000}
    tuner = Scripted({}, train=settings)
    _, report = tuner.run(FIRST)
    assert [trial.settings for trial in report.trials] == ["default", "micro_batches=2"]


def test_tuner_of_a_short_job_tries_nothing() -> None:
    tuner = Scripted({"amp=bf16": (0.5, 100.0)}, train={"amp": "auto", "epochs": 1})
    choice, report = tuner.run(FIRST)
    assert choice == FIRST
    assert tuner.tried == [""]
    assert all("the job takes about 10 s" in t.verdict for t in report.trials[1:] if "prefetch" not in t.settings)


def test_tuner_without_time_left_tries_nothing() -> None:
    tuner = Scripted({"amp=bf16": (0.5, 100.0)}, seconds=5, train=LONG)
    assert tuner.run(FIRST)[0] == FIRST
    assert tuner.tried == [""]


@pytest.mark.parametrize(
    ("seconds", "epochs", "message"),
    [(100, 10_000, "spec.tuning.maxSeconds leaves"), (1e6, 100, "the job about 1000 s")],
)
def test_tuner_without_time_or_a_long_job_does_not_compile(seconds: float, epochs: int, message: str) -> None:
    tuner = Scripted({"compile=true": (0.5, 100.0)}, seconds, train={"amp": "auto", "epochs": epochs})
    _, report = tuner.run(FIRST)
    verdict = {t.settings: t.verdict for t in report.trials}["compile=true"]
    assert verdict.startswith("not tried: compiling takes minutes")
    assert message in verdict


def test_tuner_with_time_and_a_long_job_compiles() -> None:
    choice, _ = Scripted({"compile=true": (0.5, 100.0)}, train=LONG).run(FIRST)
    assert choice.compile


@pytest.mark.parametrize("world_size", [1, 2])
def test_tuned_run_resumes_with_its_choice_and_without_new_trials(gangs: Gangs, world_size: int) -> None:
    """With real trials: the report is written, the training starts at the first sample, and a resume runs no trials."""
    spec: dict[str, Any] = {
        "replicas": 2,
        "train": {"epochs": 40, "fraction": 100.0},
        "tuning": {"mode": "Auto", "maxSeconds": 10},
    }
    gang = gangs(world_size, **spec)
    eventually(lambda: (gang.output / "checkpoints").exists() and len(gang.samples()) > 15, "training has started", 200)
    gang.processes[0].send_signal(signal.SIGTERM)
    assert set(gang.wait()) == {ExitCode.INTERRUPTED}, gang.log()
    path = gang.output / "tuning.json"
    table = json.loads(path.read_text())
    assert table["trials"][0]["settings"] == "default"
    assert len(table["trials"]) > 3
    assert all(t["verdict"] for t in table["trials"])
    saved = max((gang.output / "checkpoints").iterdir())
    choice = torch.load(saved, weights_only=True)["choice"]
    assert {k: str(v).lower() for k, v in choice.items()} == table["chosen"]
    written = path.stat().st_mtime_ns
    trained = len(gang.samples())
    resumed = gangs(world_size, **spec)
    eventually(lambda: len(resumed.samples()) > trained + 10, "training has resumed", 200)
    assert resumed.processes[0].poll() is None
    resumed.processes[0].send_signal(signal.SIGTERM)
    resumed.wait()
    assert path.stat().st_mtime_ns == written


def test_bench_command_with_tune_prints_the_table_and_leaves_no_files(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "job.yaml"
    train = {"batch": 8, "imgsz": 64, "amp": False, "channels_last": True, "compile": False}
    spec: dict[str, Any] = {"train": train, "tuning": {"maxSeconds": 10}}
    document = minimal(**spec)
    document["spec"]["model"] = {"name": "yolo11n.yaml", "scale": [0.33, 0.0625, 256]}
    path.write_text(yaml.safe_dump(document))
    command = [sys.executable, "-m", "yolojob.cli", "bench", str(path), "--cache", str(cache)]
    done = subprocess.run(
        [*command, "--tune", "-o", "json"],
        env={**os.environ, "YOLOJOB_CPUS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    table = json.loads(done.stdout)
    assert {"default", "micro_batches=2", "cache=ram"} <= {t["settings"] for t in table["trials"]}
    assert [p.name for p in tmp_path.iterdir()] == ["job.yaml"]


def test_tuner_does_not_try_loaders_for_which_shared_memory_has_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yolojob_trainer.training.autotune.available_cpus", lambda: 4)
    tuner = Scripted({"workers=2": (0.9, 100.0), "workers=4": (0.1, 100.0)}, train=LONG)
    tuner.room = 2 * ExecutionSettings.prefetch
    choice, report = tuner.run(FIRST)
    assert choice.workers == 2
    skipped = next(trial for trial in report.trials if trial.settings == "workers=4")
    assert "shared memory has no room" in str(skipped)
