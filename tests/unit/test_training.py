"""Real processes that train together over gloo: the result does not depend on how many, and survives what happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support import eventually, minimal
from support.processes import IMAGES, Gang

from yolojob.api.constants import ExitCode
from yolojob.api.manifest import parse
from yolojob.api.run import Run
from yolojob.api.trainer_report import TrainerState


@pytest.mark.parametrize("model", ["yolo11", "yolo26"])
def test_gradients_do_not_depend_on_the_number_of_ranks(gangs: Any, model: str) -> None:
    """4 ranks, 2 ranks with two micro-batches each, 1 rank accumulating all four: the same gradient."""
    gradients = {}
    for world_size in (1, 2, 4):
        gang = gangs(world_size, "gradients", model=model)
        assert gang.wait() == [0] * world_size, (gang.record.parent / "log-0").read_text()
        gradients[world_size] = torch.load(gang.record, weights_only=True)
    assert len(gradients[1]) > 50
    for world_size in (2, 4):
        assert gradients[world_size].keys() == gradients[1].keys()
        for name, reference in gradients[1].items():
            torch.testing.assert_close(gradients[world_size][name], reference, rtol=1e-6, atol=1e-8)
    largest = max(float(g.abs().max()) for g in gradients[1].values())
    assert largest > 0.1, "a gradient of nothing would agree with anything"


def test_an_epoch_visits_every_image_once_and_loss_curves_agree(gangs: Any, tmp_path: Path) -> None:
    losses = {}
    for world_size in (1, 2):
        gang = gangs(world_size, "curves", replicas=2, train={"mosaic": 1.0})
        assert gang.wait() == [0] * world_size, (tmp_path / "log-0").read_text()
        samples = gang.samples()
        for epoch in (0, 1):
            names = [n for e, _, ns in samples if e == epoch for n in ns]
            assert len(names) == len(set(names)) == IMAGES
        rows = (tmp_path / "out" / "results.csv").read_text().splitlines()
        columns = rows[0].split(",")
        losses[world_size] = [
            [float(v) for c, v in zip(columns, r.split(","), strict=True) if "train/" in c] for r in rows[1:]
        ]
        for path in [*tmp_path.glob("record.*"), *(tmp_path / "out" / "checkpoints").iterdir()]:
            path.unlink()
    torch.testing.assert_close(torch.tensor(losses[1]), torch.tensor(losses[2]), rtol=1e-4, atol=1e-5)


def test_kill_9_in_mid_epoch_resumes_at_the_exact_sample(gangs: Any, tmp_path: Path) -> None:
    """2 ranks, killed; 1 rank, stopped by SIGTERM; 2 ranks to the end: every step trains what the undisturbed run did."""
    train = {"epochs": 3, "fraction": 400.0}
    checkpoint = {"everySeconds": 1}

    def progress(gang: Gang) -> Any:
        lines = gang.record.with_name("record.0")
        return lambda: len(lines.read_text().splitlines()) if lines.exists() else 0

    killed = gangs(2, replicas=2, train=train, checkpoint=checkpoint)
    saved = tmp_path / "out" / "checkpoints"
    eventually(
        lambda: any("0000000" not in p.name for p in saved.glob("*")), "a checkpoint within an epoch", seconds=120
    )
    killed.processes[1].send_signal(signal.SIGKILL)
    began = time.monotonic()
    assert killed.processes[0].wait(30) == ExitCode.PEER_LOST
    assert time.monotonic() - began < 10, "a dead peer is noticed in seconds"
    assert killed.report().failure.reason == "PeerLost"

    before = progress(killed)()
    stopped = gangs(1, replicas=2, train=train, checkpoint=checkpoint)
    eventually(lambda: progress(stopped)() > before + 10, "it trains on", seconds=60)
    stopped.processes[0].send_signal(signal.SIGTERM)
    assert stopped.wait() == [ExitCode.INTERRUPTED]
    assert stopped.report().state == TrainerState.INTERRUPTED
    assert "image" in stopped.report().resumed_from

    ended = gangs(2, replicas=2, train=train, checkpoint=checkpoint)
    assert ended.wait() == [0, 0], (tmp_path / "log-0").read_text()
    trained: dict[tuple[int, int], set[tuple[str, ...]]] = {}
    for path in sorted(tmp_path.glob("record.*")):
        for line in path.read_text().splitlines():
            epoch, step, names, _ = json.loads(line)
            trained.setdefault((epoch, step), set()).add(tuple(names))
    for path in [*tmp_path.glob("record.*"), *saved.iterdir()]:
        path.unlink()
    undisturbed = gangs(2, replicas=2, train=train)
    assert undisturbed.wait() == [0, 0]
    reference: dict[tuple[int, int], set[tuple[str, ...]]] = {}
    for path in sorted(tmp_path.glob("record.*")):
        for line in path.read_text().splitlines():
            epoch, step, names, _ = json.loads(line)
            reference.setdefault((epoch, step), set()).add(tuple(names))
    assert trained == reference


def test_a_finished_run_started_again_ends_well_at_once(gangs: Any, tmp_path: Path) -> None:
    assert gangs(1, replicas=1).wait() == [0]
    again = gangs(1, replicas=1)
    assert again.wait() == [0]
    report = again.report()
    assert report.state == TrainerState.SUCCEEDED
    assert report.progress.epoch == report.progress.epochs == 2
    assert report.result is not None
    assert report.result.map50 is not None


def test_another_runs_checkpoint_is_not_taken_up(gangs: Any) -> None:
    assert gangs(1, replicas=1).wait() == [0]
    other = gangs(1, replicas=1, train={"lr0": 0.002})
    assert other.wait() == [ExitCode.BAD_INPUT]
    failure = other.report().failure
    assert failure is not None
    assert failure.reason == "DifferentRun"
    assert "spec.train.lr0: 0.001 there, 0.002 here" in failure.message


def test_the_weights_open_in_stock_ultralytics(gangs: Any, tmp_path: Path, cache: Path) -> None:
    """And validate there to the mAP that we reported."""
    train = {
        "epochs": 6,
        "fraction": 400.0,
        "imgsz": 128,
        "lr0": 0.004,
        "batch": 16,
        "nbs": 16,
        "mosaic": 0.0,
        "fliplr": 0.0,
    }
    gang = gangs(2, replicas=2, train=train)
    assert gang.wait() == [0, 0], (tmp_path / "log-0").read_text()
    result = gang.report().result
    assert result is not None
    best = tmp_path / "out" / "weights" / "best.pt"
    config = next(p for p in (cache / "configs").glob("*.yaml") if "digits-v" in p.read_text())
    check = f"""
import ultralytics, json
found = ultralytics.YOLO({str(best)!r}).val(data={str(config)!r}, imgsz=128, batch=16, plots=False, verbose=False,
                                            project={str(tmp_path / "val")!r})
print(json.dumps([found.box.map50, found.box.map]))
"""
    environment = {**os.environ, "YOLO_OFFLINE": "1", "YOLO_CONFIG_DIR": str(cache)}
    done = subprocess.run([sys.executable, "-c", check], env=environment, capture_output=True, text=True, check=True)
    stock = json.loads(done.stdout.splitlines()[-1])
    assert stock == pytest.approx([result.map50, result.map], abs=0.002)
    assert stock[0] > 0.05, "a model that finds nothing agrees with anything"


def test_sigterm_while_waiting_for_a_peer_ends_a_worker_at_once(tmp_path: Path, cache: Path) -> None:
    """As the first process of a container, to which a signal without a handler is never delivered."""
    run = Run(name="digits", spec=parse(minimal(workers={"replicas": 2})).spec)
    environment = {
        **os.environ,
        "YOLOJOB_RUN": run.to_env(),
        "YOLOJOB_OUTPUT_DIR": str(tmp_path / "out"),
        "YOLOJOB_CACHE_DIR": str(cache),
        "YOLOJOB_TERMINATION_LOG": str(tmp_path / "final"),
        "YOLOJOB_METRICS_PORT": "0",
        "PET_NNODES": "2",
        "PET_NODE_RANK": "1",
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": "1",
    }
    # A process namespace of its own makes it number 1, as in a container; without root it is tested without.
    isolated = ["unshare", "--pid", "--fork", "--kill-child"] if os.geteuid() == 0 else []
    command = [*isolated, sys.executable, "-m", "yolojob_trainer.launch"]
    worker = subprocess.Popen(command, env=environment)

    def trainer() -> list[int]:
        return [pid for pid in _descendants(worker.pid) if b"yolojob_trainer\0" in _command(pid)]

    try:
        eventually(trainer, "the trainer has started")
        family = [*_descendants(worker.pid), worker.pid]
        launcher = next(
            pid for pid in family if b"yolojob_trainer.launch\0" in _command(pid) and b"unshare" not in _command(pid)
        )
        os.kill(launcher, signal.SIGTERM)
        assert worker.wait(5) == ExitCode.INTERRUPTED
    finally:
        worker.kill()


def _descendants(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [d for child in map(int, children) for d in (child, *_descendants(child))]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
