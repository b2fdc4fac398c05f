"""Real processes that train together over gloo: the result does not depend on their number and survives
interruptions.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support import eventually, minimal
from support.processes import FINISHED, IMAGES, Gang, Gangs

from yolojob.api.constants import ExitCode
from yolojob.api.manifest import parse
from yolojob.api.run import Run
from yolojob.api.trainer_report import TrainerState

pytestmark = pytest.mark.processes


@pytest.mark.parametrize("model", ["yolo11", "yolo26"])
def test_gradients_do_not_depend_on_the_number_of_ranks(gangs: Gangs, model: str) -> None:
    """4 ranks, 2 ranks with two microbatches each, and 1 rank that accumulates all four compute the same gradient."""
    gradients = {}
    for world_size in (1, 2, 4):
        gang = gangs(world_size, "gradients", model=model)
        assert gang.wait() == [0] * world_size, gang.log()
        gradients[world_size] = torch.load(gang.record, weights_only=True)
    assert len(gradients[1]) > 50
    for world_size in (2, 4):
        assert gradients[world_size].keys() == gradients[1].keys()
        for name, reference in gradients[1].items():
            torch.testing.assert_close(gradients[world_size][name], reference, rtol=1e-6, atol=1e-8)
    largest = max(float(g.abs().max()) for g in gradients[1].values())
    assert largest > 0.1, "gradients of zero would always be equal"


def test_epochs_of_one_and_two_ranks_visit_every_image_once_and_have_equal_losses(gangs: Gangs) -> None:
    losses = {}
    for world_size in (1, 2):
        gang = gangs(world_size, "curves", replicas=2, train={"mosaic": 1.0})
        assert gang.wait() == [0] * world_size, gang.log()
        samples = gang.samples()
        for epoch in (0, 1):
            names = [n for e, _, ns in samples if e == epoch for n in ns]
            assert len(names) == len(set(names)) == IMAGES
        rows = (gang.output / "results.csv").read_text().splitlines()
        columns = rows[0].split(",")
        losses[world_size] = [
            [float(v) for c, v in zip(columns, r.split(","), strict=True) if "train/" in c] for r in rows[1:]
        ]
        gang.remove_records()
        shutil.rmtree(gang.output / "checkpoints")
    torch.testing.assert_close(torch.tensor(losses[1]), torch.tensor(losses[2]), rtol=1e-4, atol=1e-5)


def samples_by_step(gang: Gang) -> dict[tuple[int, int], set[tuple[str, ...]]]:
    """(epoch, step) -> the microbatches that any attempt has trained in it; one trained twice counts once."""
    steps: dict[tuple[int, int], set[tuple[str, ...]]] = {}
    for rank in range(2):
        for batch in gang.micro_batches(rank):
            steps.setdefault((batch.epoch, batch.step), set()).add(tuple(batch.names))
    return steps


def test_training_after_kill_9_and_sigterm_resumes_at_the_exact_sample(gangs: Gangs) -> None:
    """2 ranks, killed; 1 rank, stopped by SIGTERM; 2 ranks until the end. Together they train every step as one
    undisturbed run does."""
    train = {"epochs": 2, "fraction": 400.0}
    spec: dict[str, Any] = {"replicas": 2, "train": train, "checkpoint": {"everySeconds": 1}}

    killed = gangs(2, **spec)
    checkpoints = killed.output / "checkpoints"
    eventually(
        lambda: any("0000000" not in p.name for p in checkpoints.glob("*.pt")), "a checkpoint within an epoch", 120
    )
    killed.processes[1].send_signal(signal.SIGKILL)
    assert killed.processes[0].wait() == ExitCode.PEER_LOST
    failure = killed.report().failure
    assert failure is not None
    assert failure.reason == "PeerLost"
    assert "heartbeat" not in failure.message, "a closed connection is noticed before the heartbeat's timeout"

    trained = len(killed.micro_batches(0))
    stopped = gangs(1, **spec)
    eventually(lambda: len(stopped.micro_batches(0)) > trained + 10, "training has resumed", 120)
    stopped.processes[0].send_signal(signal.SIGTERM)
    assert stopped.wait() == [ExitCode.INTERRUPTED]
    assert stopped.report().state == TrainerState.INTERRUPTED
    assert "image" in (stopped.report().resumed_from or "")

    ended = gangs(2, **spec)
    assert ended.wait() == [0, 0], ended.log()
    resumed_samples = samples_by_step(ended)
    ended.remove_records()
    shutil.rmtree(checkpoints)
    undisturbed = gangs(2, replicas=2, train=train)
    assert undisturbed.wait() == [0, 0], undisturbed.log()
    assert resumed_samples == samples_by_step(undisturbed)


def test_training_after_sigterm_in_the_last_step_of_an_epoch_resumes_with_its_validation(
    gangs: Gangs, tmp_path: Path
) -> None:
    """A validation may take longer than the time that a pod has to end."""
    spec: dict[str, Any] = {"replicas": 2, "train": {"epochs": 2}, "checkpoint": {"everyEpochs": 2}}
    stopped = gangs(2, **spec, environment={"YOLOJOB_TEST_STOP": "1,0,4"})
    assert stopped.wait() == [ExitCode.INTERRUPTED] * 2, stopped.log()
    failure = stopped.report().failure
    assert failure is not None
    assert "saved at epoch 1, step 5 of 5" in failure.message
    assert not (stopped.output / "results.csv").exists(), "the epoch is validated"

    ended = gangs(2, **spec)
    assert ended.wait() == [0, 0], ended.log()
    undisturbed = Gangs(tmp_path / "undisturbed", gangs.cache, gangs.servers)
    undisturbed.folder.mkdir()
    assert undisturbed(2, **spec).wait() == [0, 0]
    rows, expected = (results(folder) for folder in (ended.output, undisturbed.folder / "out"))
    assert rows == [pytest.approx(row, rel=1e-4) for row in expected]


@pytest.mark.parametrize(("world_size", "fits_first"), [(1, False), (2, True)])
def test_training_out_of_gpu_memory_continues_with_smaller_micro_batches(
    gangs: Gangs, world_size: int, fits_first: bool
) -> None:
    environment = {"YOLOJOB_TEST_MEMORY": "2", **({"YOLOJOB_TEST_FIT": "1"} if fits_first else {})}
    gang = gangs(world_size, replicas=world_size, train={"epochs": 2}, environment=environment)
    assert gang.wait() == [0] * world_size, gang.log()
    warnings = [warning for warning in gang.report().warnings if "out of GPU memory" in warning]
    assert any("microbatches of at most 2 image(s)" in warning for warning in warnings), warnings
    epochs: dict[int, list[str]] = {}
    for rank in range(world_size):
        for batch in gang.micro_batches(rank):
            if len(batch.names) <= 2:  # the others were not trained
                epochs.setdefault(batch.epoch, []).extend(batch.names)
    assert all(len(names) == len(set(names)) == IMAGES for names in epochs.values())
    assert len(epochs) == 2


def test_fitting_the_memory_leaves_no_trace_in_the_training(gangs: Gangs, tmp_path: Path) -> None:
    """Neither in batch norm statistics, nor in the criterion, which upstream gives class weights later."""
    spec: dict[str, Any] = {"replicas": 1, "train": {"epochs": 1, "cls_pw": 1.0}}
    fitted = gangs(1, **spec, environment={"YOLOJOB_TEST_FIT": "1"})
    assert fitted.wait() == [0], fitted.log()
    plain = Gangs(tmp_path / "plain", gangs.cache, gangs.servers)
    plain.folder.mkdir()
    assert plain(1, **spec).wait() == [0]
    assert results(fitted.output) == [pytest.approx(row, rel=1e-4) for row in results(plain.folder / "out")]


def test_training_with_too_little_gpu_memory_for_one_image_is_bad_input(gangs: Gangs) -> None:
    gang = gangs(1, replicas=1, environment={"YOLOJOB_TEST_MEMORY": "0"})
    assert gang.wait() == [ExitCode.BAD_INPUT], gang.log()
    failure = gang.report().failure
    assert failure is not None
    assert failure.reason == "OutOfMemory"


def results(folder: Path) -> list[dict[str, float]]:
    """The rows of results.csv without the time."""
    with (folder / "results.csv").open() as file:
        return [{k: float(v) for k, v in row.items() if k != "time"} for row in csv.DictReader(file)]


def test_finished_run_started_again_succeeds_without_training(gangs: Gangs, finished: Gang, tmp_path: Path) -> None:
    shutil.copytree(finished.output, tmp_path / "out")
    again = gangs(1, **FINISHED)
    assert again.wait() == [0], again.log()
    report = again.report()
    assert report.state == TrainerState.SUCCEEDED
    assert report.progress.epoch == report.progress.epochs == 4
    assert report.result is not None
    assert report.result.map50 is not None
    assert again.samples() == []


def test_checkpoint_of_a_run_with_other_settings_is_refused(gangs: Gangs, finished: Gang, tmp_path: Path) -> None:
    shutil.copytree(finished.output, tmp_path / "out")
    other = gangs(1, **{**FINISHED, "train": {**FINISHED["train"], "lr0": 0.002}})
    assert other.wait() == [ExitCode.BAD_INPUT]
    failure = other.report().failure
    assert failure is not None
    assert failure.reason == "DifferentRun"
    assert "spec.train.lr0: 0.001 there, 0.002 here" in failure.message


def test_best_weights_have_the_reported_map_in_stock_ultralytics(gangs: Gangs, tmp_path: Path, cache: Path) -> None:
    train = {"epochs": 6, "fraction": 400.0, "imgsz": 128, "lr0": 0.004, "batch": 16, "nbs": 16}
    train |= {"mosaic": 0.0, "fliplr": 0.0}
    gang = gangs(2, replicas=2, train=train)
    assert gang.wait() == [0, 0], gang.log()
    result = gang.report().result
    assert result is not None
    best = gang.output / "weights" / "best.pt"
    config = next(cache.glob("datasets/digits-v*/data.yaml"))
    check = f"""
import ultralytics, json
metrics = ultralytics.YOLO({str(best)!r}).val(data={str(config)!r}, imgsz=128, batch=16, plots=False, verbose=False,
                                              project={str(tmp_path / "val")!r})
print(json.dumps([metrics.box.map50, metrics.box.map]))
"""
    environment = {**os.environ, "YOLO_OFFLINE": "1", "YOLO_CONFIG_DIR": str(cache), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", check], env=environment, capture_output=True, text=True, check=True)
    stock = json.loads(done.stdout.splitlines()[-1])
    assert stock == pytest.approx([result.map50, result.map], abs=0.002)
    assert stock[0] > 0.05, "a model that detects nothing would always agree"


def test_launcher_after_sigterm_while_waiting_for_a_peer_exits_as_interrupted(tmp_path: Path, cache: Path) -> None:
    """As in a container, the launcher is process 1, to which the kernel delivers no signal without a handler."""
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
        "YOLOJOB_SECRET_FILE": str(tmp_path / "secret"),
    }
    (tmp_path / "secret").write_bytes(bytes(32))
    # Process 1 of a namespace; without root the test runs in the machine's namespace.
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
        # Without the signal the trainer would wait ten minutes for its peer.
        assert worker.wait(60) == ExitCode.INTERRUPTED
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
