"""Training survives faults of its loss, peers, disks and buckets, or reports what was lost."""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from support import eventually
from support.processes import Gang, Gangs
from support.stores import Bucket
from yolojob_trainer.checkpoint.bucket_mirror import Mirror
from yolojob_trainer.data.object_store import ObjectStore
from yolojob_trainer.distributed import heartbeat
from yolojob_trainer.errors import BadInput, TrainerError
from yolojob_trainer.model.resolve import resolve

from yolojob.api.constants import ExitCode
from yolojob.api.spec import ModelRef
from yolojob.api.trainer_report import Report, TrainerState

pytestmark = pytest.mark.processes


def loss_rows(folder: Path) -> list[dict[str, str]]:
    lines = (folder / "results.csv").read_text().splitlines()
    return [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]


@pytest.mark.parametrize("world_size", [1, 2])
def test_training_with_a_non_finite_loss_rolls_back(gangs: Gangs, world_size: int) -> None:
    """A weight becomes NaN on rank 0 only, in the second epoch: all ranks go back to the end of the first epoch."""
    gang = gangs(world_size, "diverge", replicas=2, train={"epochs": 3}, environment={"YOLOJOB_TEST_DIVERGE": "1"})
    assert gang.wait() == [0] * world_size, gang.log()
    report = gang.report()
    assert report.progress.rollbacks == 1
    warning = next(w for w in report.warnings if "not finite" in w)
    assert "epoch 2" in warning
    assert "learning rate" in warning
    assert "rollback 1 of 3" in warning
    rows = loss_rows(gang.output)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert all("nan" not in value for row in rows for value in row.values())
    # The learning rate follows the same schedule, halved from the second epoch on.
    rates = [float(row["lr/pg0"]) for row in rows]
    assert rates == pytest.approx([0.001, 0.5 * 0.00067, 0.5 * 0.00034], rel=1e-3)


def test_training_with_a_loss_that_stays_non_finite_fails_after_three_rollbacks(gangs: Gangs) -> None:
    gang = gangs(2, "diverge", replicas=2, train={"epochs": 3}, environment={"YOLOJOB_TEST_DIVERGE": "99"})
    assert gang.wait() == [ExitCode.FAILED] * 2, gang.log()
    failure = gang.report().failure
    assert failure is not None
    assert failure.reason == "NonFiniteLoss"
    assert "epoch 2, step " in failure.message
    assert "learning rate 8." in failure.message, "an eighth of the original rate"
    assert "3 rollbacks" in failure.message


def test_training_with_a_non_finite_loss_and_no_checkpoint_restarts_from_the_beginning(gangs: Gangs) -> None:
    """No checkpoint with a weight that is not finite is ever written."""
    gang = gangs(
        1,
        "diverge",
        replicas=1,
        train={"epochs": 3},
        checkpoint={"everyEpochs": 3},
        environment={"YOLOJOB_TEST_DIVERGE": "1"},
    )
    assert gang.wait() == [0], gang.log()
    report = gang.report()
    assert report.progress.rollbacks == 1
    checkpoints = list((gang.output / "checkpoints").iterdir())
    assert checkpoints
    for path in checkpoints:
        model = torch.load(path, weights_only=True)["model"]
        assert all(torch.isfinite(v).all() for v in model.values() if v.is_floating_point())


def test_training_with_a_rank_that_hangs_ends_as_peer_lost(gangs: Gangs) -> None:
    """A stopped process closes no connection, as a machine without power or a process that waits for a dead disk."""
    environment = {"YOLOJOB_TEST_HEARTBEAT_TIMEOUT": "5"}
    gang = gangs(2, replicas=2, train={"epochs": 100}, environment=environment)
    eventually(lambda: len(gang.samples()) > 3, "training has started", 120)
    gang.processes[1].send_signal(signal.SIGSTOP)
    assert gang.processes[0].wait() == ExitCode.PEER_LOST, gang.log()
    failure = gang.report().failure
    assert failure is not None
    assert failure.reason == "PeerLost"
    assert "rank 1 has sent no heartbeat for 5 s" in failure.message


def test_heartbeat_timeout_is_fifteen_seconds() -> None:
    assert heartbeat.HEARTBEAT_TIMEOUT_SECONDS == 15


def test_training_during_a_port_scan_is_not_disturbed(gangs: Gangs) -> None:
    """Connections to rank 0's heartbeat port that send nothing, or nonsense, and close.

    Each rank is the only one of its worker, as in a cluster; rank 0 of a single worker listens only for this machine.
    """
    alone = {"LOCAL_WORLD_SIZE": "1", "YOLOJOB_CPUS": "1"}
    gang = gangs(2, replicas=2, train={"epochs": 4, "fraction": 200.0}, environment=alone)
    eventually(lambda: len(gang.samples()) > 3, "training has started", 120)
    port = heartbeat_port(gang)
    for data in (b"", b"GET / HTTP/1.0\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b"", "the connection is closed without an answer"
    assert gang.wait() == [0, 0], gang.log()


def heartbeat_port(gang: Gang) -> int:
    """Port of rank 0 that listens on all addresses; torch's store and gloo listen on a single address."""
    connections = psutil.Process(gang.processes[0].pid).net_connections("tcp")
    (port,) = {c.laddr.port for c in connections if c.status == "LISTEN" and c.laddr.ip == "::"}
    return int(port)


def test_training_on_a_disk_that_is_full_for_a_while_continues_and_warns(gangs: Gangs, tmp_path: Path) -> None:
    """The disk is full after the first checkpoint and has space again before the end."""
    if os.geteuid() != 0:
        reason = "mounting a small disk needs root"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(out)], check=True)
    try:
        gang = gangs(1, replicas=1, train={"epochs": 8, "fraction": 200.0}, checkpoint={"everySeconds": 1})
        eventually(lambda: list((out / "checkpoints").glob("*.pt")), "a checkpoint", 120)
        ballast = out / "ballast"
        subprocess.run(["dd", "if=/dev/zero", f"of={ballast}", "bs=1M"], check=False, capture_output=True)
        trained = len(gang.samples())
        eventually(lambda: len(gang.samples()) > trained + 40, "training continues", 120)
        remaining = list((out / "checkpoints").glob("*.pt"))
        ballast.unlink()
        assert gang.wait() == [0], gang.log()
        report = gang.report()
        assert report.state == TrainerState.SUCCEEDED
        assert report.progress.checkpoint_failures
        assert any("No space left" in w for w in report.warnings)
        assert remaining, "the full disk has cost the checkpoints that were there before"
        assert (out / "weights" / "best.pt").stat().st_size > 0
    finally:
        subprocess.run(["umount", "-l", str(out)], check=True)


def test_best_weights_are_saved_whatever_the_checkpoint_interval(finished: Gang) -> None:
    """Four epochs with a checkpoint every three."""
    best = torch.load(finished.output / "weights" / "best.pt", weights_only=False)
    rows = loss_rows(finished.output)
    result = finished.report().result
    assert result is not None
    assert best["train_metrics"]["metrics/mAP50-95(B)"] == pytest.approx(result.map)
    assert max(float(row["metrics/mAP50-95(B)"]) for row in rows) == pytest.approx(result.map, abs=1e-5)
    assert len(rows) == 4


def test_checkpoint_that_is_given_as_weights_is_refused_with_the_file_to_use(finished: Gang, tmp_path: Path) -> None:
    checkpoint = next((finished.output / "checkpoints").glob("*.pt"))
    model = ModelRef.model_validate({"name": "yolo11n.yaml", "weights": {"uri": f"file://{checkpoint}"}})
    with pytest.raises(BadInput, match=r"spec.model.weights: .*only its own run resumes; use weights/last.pt"):
        resolve(model, volumes=tmp_path, cache=tmp_path)


def test_epoch_without_validation_is_not_the_best(gangs: Gangs) -> None:
    gang = gangs(1, replicas=1, train={"epochs": 3, "val_period": 2})
    assert gang.wait() == [0], gang.log()
    validated = [row["metrics/mAP50(B)"] for row in loss_rows(gang.output)]
    assert validated[0] == "", "the first epoch is validated"
    assert "" not in validated[1:], "the second epoch is validated, and so is the last one"
    best = torch.load(gang.output / "weights" / "best.pt", weights_only=False)
    assert best["train_metrics"]["fitness"] is not None


@pytest.mark.parametrize("world_size", [1, 2])
def test_reported_times_over_an_interruption_add_up_to_the_wall_clock(gangs: Gangs, world_size: int) -> None:
    """Less than 2 % of a step belongs to no part. A busy machine delays some steps, so the quickest quarter counts."""
    spec: dict[str, Any] = {
        "replicas": 2,
        "train": {"epochs": 4, "fraction": 400.0},
        "checkpoint": {"everySeconds": 2},
    }
    gang = gangs(world_size, **spec)
    eventually(lambda: len(gang.samples()) > 80, "training has started", 120)
    gang.processes[-1].send_signal(signal.SIGTERM)
    assert set(gang.wait()) == {ExitCode.INTERRUPTED}, gang.log()
    wall = gang.seconds_until_report()
    interrupted = gang.report()
    assert parts(interrupted) == pytest.approx(wall, rel=0.05)
    gang = gangs(world_size, **spec)
    assert gang.wait() == [0] * world_size, gang.log()
    wall += gang.seconds_until_report()
    report = gang.report()
    assert parts(report) == pytest.approx(wall, rel=0.05)
    if world_size > 1:
        assert report.timing.all_reduce_with_overlap_seconds is not None
        assert report.timing.all_reduce_with_overlap_seconds > 0
    check_trace(gang.output / "trace", world_size, report)
    steps = [line["seconds"] for line in trace_lines(gang.output / "trace", 0) if "images" in line]
    shares = [step["other"] / sum(step.values()) for step in steps]
    assert statistics.quantiles(shares, n=4)[0] < 0.02


def parts(report: Report) -> float:
    """Sum of all parts of the reported time, seconds."""
    timing = report.timing
    others = (timing.staging_seconds, timing.startup_seconds, timing.validation_seconds, timing.checkpoint_seconds)
    return sum(timing.training_seconds.values()) + sum(value or 0.0 for value in others)


def trace_lines(folder: Path, rank: int) -> list[dict[str, Any]]:
    """The lines of one rank's trace, in the order of time."""
    paths = sorted((folder / f"rank-{rank}").glob("epoch-*.attempt-1.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def check_trace(folder: Path, world_size: int, report: Report) -> None:
    """Every rank has a line for each step, without gaps in time, and the lines of rank 0 add up to the report."""
    assert sorted(p.name for p in folder.iterdir()) == [f"rank-{rank}" for rank in range(world_size)]
    for rank in range(world_size):
        lines = trace_lines(folder, rank)
        steps = {(line["epoch"], line["step"]) for line in lines if "images" in line}
        assert steps == {(epoch, step) for epoch in range(4) for step in range(50)}
        if rank == 0:
            total = sum(sum(line["seconds"].values()) for line in lines)
            assert total == pytest.approx(parts(report), rel=0.02)
        gaps = [
            after["start"] - before["start"] - sum(before["seconds"].values())
            for before, after in itertools.pairwise(lines)
            if "startup" not in before["seconds"] and "startup" not in after["seconds"]
        ]
        assert max(map(abs, gaps)) < 0.001


class TestBucket:
    """Jobs with spec.storage.uri: s3://…"""

    def storage(self, bucket: Bucket) -> dict[str, Any]:
        return {"storage": {"uri": f"s3://{bucket.name}/runs/digits"}}

    def test_run_with_only_the_bucket_left_resumes(self, gangs: Gangs, bucket: Bucket) -> None:
        """As on another machine: the output folder is lost."""
        train = {"epochs": 4, "fraction": 200.0}
        spec = {"replicas": 1, "train": train, "checkpoint": {"everySeconds": 1}, **self.storage(bucket)}
        first = gangs(1, **spec)
        eventually(lambda: len(first.samples()) > 30, "training has started", 120)
        first.processes[0].send_signal(signal.SIGTERM)
        assert first.wait() == [ExitCode.INTERRUPTED], first.log()
        saved = bucket.keys("runs/digits/checkpoints/")
        assert saved, "the process has ended before its upload"
        shutil.rmtree(first.output)
        second = gangs(1, **spec)
        assert second.wait() == [0], second.log()
        report = second.report()
        assert report.resumed_from is not None
        assert report.result is not None
        assert report.result.weights == f"s3://{bucket.name}/runs/digits/weights/best.pt"
        keys = set(bucket.keys("runs/digits/"))
        for name in ("weights/best.pt", "weights/last.pt", "results.csv"):
            local = second.output / name
            assert bucket.get(f"runs/digits/{name}") == local.read_bytes()
        assert len([k for k in keys if "/checkpoints/" in k]) == 2, "spec.checkpoint.keep"
        assert any("/trace/rank-0/epoch-00004" in k for k in keys)
        assert any(k.startswith("runs/digits/weights") for k in keys)

    def test_run_with_a_bucket_that_is_down_for_a_while_uploads_everything(self, gangs: Gangs, bucket: Bucket) -> None:
        down = [False]
        bucket.proxy.refuse = lambda method, _path: 503 if down[0] else 0
        gang = gangs(1, replicas=1, train={"epochs": 6, "fraction": 200.0}, **self.storage(bucket))
        eventually(lambda: len(gang.samples()) > 5, "training has started", 120)
        down[0] = True
        eventually(lambda: any(e == 2 for e, _, _ in gang.samples()), "training continues without the bucket", 120)
        down[0] = False
        assert gang.wait() == [0], gang.log()
        for name in ("weights/best.pt", "results.csv"):
            assert bucket.get(f"runs/digits/{name}") == (gang.output / name).read_bytes()

    def test_mirror_with_a_bucket_that_stays_down_fails_when_it_is_closed(self, bucket: Bucket, tmp_path: Path) -> None:
        """Training continues without the bucket; only its end waits, and then fails."""
        (tmp_path / "marker").write_text("x")
        failed: list[str] = []
        store = ObjectStore(f"s3://{bucket.name}/run", "spec.storage.uri", retry_timeout=0.5)
        mirror = Mirror(tmp_path, store, "team/digits", failed.append)
        mirror.start()
        bucket.proxy.refuse = lambda _m, _p: 503
        mirror.put(tmp_path / "marker")
        eventually(lambda: failed, "the failure is reported", 30)
        with pytest.raises(TrainerError, match="not uploaded within 1 s: marker"):
            mirror.close(1)
        bucket.proxy.refuse = lambda _m, _p: 0
        mirror.close(30)
        assert bucket.get("run/marker") == b"x"

    def test_finished_run_started_again_uploads_missing_files(self, gangs: Gangs, bucket: Bucket) -> None:
        spec = {"replicas": 1, "train": {"epochs": 1}, **self.storage(bucket)}
        first = gangs(1, **spec)
        assert first.wait() == [0], first.log()
        for key in bucket.keys("runs/digits/weights"):
            bucket.remove(key)
        again = gangs(1, **spec)
        assert again.wait() == [0], again.log()
        best = (again.output / "weights" / "best.pt").read_bytes()
        assert bucket.get("runs/digits/weights/best.pt") == best

    def test_run_with_a_bucket_without_write_access_fails_before_training(self, gangs: Gangs, bucket: Bucket) -> None:
        gang = gangs(1, replicas=1, environment={"AWS_SECRET_ACCESS_KEY": "wrong"}, **self.storage(bucket))
        assert gang.wait() == [ExitCode.BAD_INPUT], gang.log()
        failure = gang.report().failure
        assert failure is not None
        assert failure.reason == "StorageDenied"
        assert failure.message.startswith(f"spec.storage.uri: s3://{bucket.name}/runs/digits: access denied")
        assert gang.samples() == []


def test_training_with_data_set_and_weights_from_a_bucket_fetches_them_once(
    gangs: Gangs, finished: Gang, bucket: Bucket, cache: Path
) -> None:
    digits = next(cache.glob("datasets/digits-v*"))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(digits.rglob("*.*")):
            file.write(path, f"digits/{path.relative_to(digits)}")
    bucket.put("digits.zip", archive.getvalue())
    bucket.put("weights/start.pt", (finished.output / "weights" / "best.pt").read_bytes())
    gang = gangs(
        2,
        replicas=2,
        dataset={"uri": f"s3://{bucket.name}/digits.zip"},
        train={"epochs": 1},
        weights={"uri": f"s3://{bucket.name}/weights/start.pt"},
    )
    assert gang.wait() == [0, 0], gang.log()
    report = gang.report()
    assert report.progress.dataset_bytes == len(archive.getvalue())
    assert report.progress.staged_bytes == len(archive.getvalue())
    archives = [1 for method, path in bucket.proxy.requests if method == "GET" and path.endswith("digits.zip")]
    assert len(archives) == 1, "two ranks on one node fetch the archive once"
