"""Trials before the training: what is chosen, what is refused, and that the training does not notice."""

from __future__ import annotations

import dataclasses
import json
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
from support.processes import tiny
from yolojob_trainer.data.sample_order import SampleOrder
from yolojob_trainer.distributed.world import World
from yolojob_trainer.training.autotune import Measured, Tuner
from yolojob_trainer.training.execution import ExecutionSettings

from yolojob.api.constants import ExitCode

ALONE = World(
    rank=0, world_size=1, local_rank=0, local_world_size=1, device=torch.device("cpu"), on_lost_peer=lambda _: None
)
FIRST = ExecutionSettings(amp="fp32", channels_last=True)


class Scripted(Tuner):
    """Takes its measurements from a table: settings -> (seconds per step, loss), or what fails."""

    def __init__(self, table: dict[str, tuple[float, float] | str], seconds: float = 1e6, **spec: Any) -> None:
        run = tiny(replicas=1, **spec)
        pipeline: Any = SimpleNamespace(
            model=torch.nn.Linear(1, 1),
            run=run,
            device=torch.device("cpu"),
            order=SampleOrder(samples=100, batch=10, shards=1, seed=0),
            world=ALONE,
            args=SimpleNamespace(epochs=run.spec.train.epochs),
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
            found = self.table.get(setting, (1.0, 100.0))
            if isinstance(found, str):
                raise RuntimeError(found)
            step, loss = step * found[0], loss * found[1] / 100
        return Measured(step_seconds=step, loss=loss)


LONG = {"amp": "auto", "epochs": 10_000}


def test_what_is_faster_is_kept_and_built_upon() -> None:
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


def test_what_changes_the_loss_is_refused_however_fast() -> None:
    choice, report = Scripted({"amp=bf16": (0.1, 103.0), "micro_batches=2": (0.1, float("nan"))}, train=LONG).run(FIRST)
    assert choice == FIRST
    verdicts = {trial.settings: trial.verdict for trial in report.trials}
    assert verdicts["amp=bf16"] == "refused: changes the loss by 3.0%"
    assert verdicts["micro_batches=2"].startswith("refused")


def test_what_fails_is_told_and_passed_over() -> None:
    choice, report = Scripted({"cache=ram": "no room", "amp=bf16": (0.5, 100.0)}, train=LONG).run(FIRST)
    assert choice.amp == "bf16"
    assert {t.settings: t.verdict for t in report.trials}["cache=ram"] == "failed: no room"


def test_what_the_user_has_set_is_left_alone() -> None:
    settings = {"amp": False, "channels_last": True, "cache": False, "workers": 0, "compile": False, "epochs": 10_000}
    tuner = Scripted({}, train=settings)
    _, report = tuner.run(FIRST)
    assert [trial.settings for trial in report.trials] == ["default", "micro_batches=2"]


def test_a_short_job_is_not_tuned_for_longer_than_it_takes() -> None:
    tuner = Scripted({"amp=bf16": (0.5, 100.0)}, train={"amp": "auto", "epochs": 1})
    choice, report = tuner.run(FIRST)
    assert choice == FIRST
    assert tuner.tried == [""]
    assert all("the job takes about 10 s" in t.verdict for t in report.trials[1:] if "prefetch" not in t.settings)


def test_the_time_for_trials_is_bounded() -> None:
    tuner = Scripted({"amp=bf16": (0.5, 100.0)}, seconds=5, train=LONG)
    assert tuner.run(FIRST)[0] == FIRST
    assert tuner.tried == [""]


def test_compiling_needs_time_and_a_long_job() -> None:
    for seconds, epochs, words in ((100, 10_000, "leaves 1"), (1e6, 100, "the job about")):
        _, report = Scripted({"compile=true": (0.5, 100.0)}, seconds, train={"amp": "auto", "epochs": epochs}).run(
            FIRST
        )
        verdict = {t.settings: t.verdict for t in report.trials}["compile=true"]
        assert verdict.startswith("not tried: compiling takes minutes")
        assert words in verdict or "leaves 99" in verdict
    choice, _ = Scripted({"compile=true": (0.5, 100.0)}, train=LONG).run(FIRST)
    assert choice.compile


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_tuned_run_trains_the_same_samples_and_resumes_with_its_choice(
    gangs: Any, tmp_path: Path, world_size: int
) -> None:
    """With real trials: the table is written, the training begins at the first sample, and a resume tunes no more."""
    spec: dict[str, Any] = {
        "replicas": 2,
        "train": {"epochs": 40, "fraction": 100.0},
        "tuning": {"mode": "Auto", "maxSeconds": 20},
    }
    gang = gangs(world_size, **spec)
    eventually(lambda: (tmp_path / "out" / "checkpoints").exists() and len(gang.samples()) > 60, "it trains", 200)
    gang.processes[0].send_signal(signal.SIGTERM)
    assert set(gang.wait()) == {ExitCode.INTERRUPTED}, gang.log()
    table = json.loads((tmp_path / "out" / "tuning.json").read_text())
    assert table["trials"][0]["settings"] == "default"
    assert len(table["trials"]) > 3
    assert all(t["verdict"] for t in table["trials"])
    saved = max((tmp_path / "out" / "checkpoints").iterdir())
    choice = torch.load(saved, weights_only=True)["choice"]
    assert {k: str(v).lower() for k, v in choice.items()} == table["chosen"]
    written = (tmp_path / "out" / "tuning.json").stat().st_mtime_ns
    again = gangs(world_size, **spec)
    eventually(lambda: again.processes[0].poll() is None and len(again.samples()) > 80, "it goes on", 200)
    again.processes[0].send_signal(signal.SIGTERM)
    again.wait()
    assert (tmp_path / "out" / "tuning.json").stat().st_mtime_ns == written


def test_bench_prints_the_table_and_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "job.yaml"
    train = {"batch": 8, "imgsz": 64, "amp": False, "channels_last": True, "compile": False}
    spec = {"train": train, "tuning": {"maxSeconds": 15}}
    document = minimal(**spec)
    document["spec"]["model"] = {"name": "yolo11n.yaml", "scale": [0.33, 0.0625, 256]}
    path.write_text(yaml.safe_dump(document))
    command = [sys.executable, "-m", "yolojob.cli", "bench", str(path), "--cache", str(cache)]
    done = subprocess.run([*command, "--tune", "-o", "json"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    table = json.loads(done.stdout)
    assert {"default", "micro_batches=2", "cache=ram"} <= {t["settings"] for t in table["trials"]}
    assert [p.name for p in tmp_path.iterdir()] == ["job.yaml"]
