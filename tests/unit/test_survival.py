"""What a run survives, and what it says when it does not."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support import eventually
from support.stores import Bucket

from yolojob.api.constants import ExitCode
from yolojob.api.trainer_report import Report, TrainerState


def loss_rows(folder: Path) -> list[dict[str, str]]:
    lines = (folder / "results.csv").read_text().splitlines()
    return [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_loss_that_is_not_finite_is_rolled_back(gangs: Any, tmp_path: Path, world_size: int) -> None:
    """A weight breaks on rank 0 alone, in the second epoch: all ranks go back to the end of the first."""
    gang = gangs(world_size, "diverge", replicas=2, train={"epochs": 3}, environment={"YOLOJOB_TEST_DIVERGE": "1"})
    assert gang.wait() == [0] * world_size, gang.log()
    report = gang.report()
    assert report.progress.rollbacks == 1
    words = next(w for w in report.warnings if "not finite" in w)
    assert "epoch 2" in words
    assert "learning rate" in words
    assert "rollback 1 of 3" in words
    rows = loss_rows(tmp_path / "out")
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert all("nan" not in value for row in rows for value in row.values())
    # The same schedule, halved from the second epoch on.
    rates = [float(row["lr/pg0"]) for row in rows]
    assert rates == pytest.approx([0.001, 0.5 * 0.00067, 0.5 * 0.00034], rel=1e-3)


def test_rollbacks_are_bounded_and_named(gangs: Any) -> None:
    gang = gangs(2, "diverge", replicas=2, train={"epochs": 3}, environment={"YOLOJOB_TEST_DIVERGE": "99"})
    assert gang.wait() == [ExitCode.FAILED] * 2, gang.log()
    failure = gang.report().failure
    assert failure is not None
    assert failure.reason == "NonFiniteLoss"
    assert "epoch 2, step " in failure.message
    assert "learning rate 8." in failure.message, "an eighth of what it was"
    assert "3 rollbacks" in failure.message


def test_without_a_checkpoint_it_begins_anew(gangs: Any) -> None:
    """And no checkpoint that is not finite is ever written."""
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
    for path in (gang.record.parent / "out" / "checkpoints").iterdir():
        model = torch.load(path, weights_only=True)["model"]
        assert all(torch.isfinite(v).all() for v in model.values() if v.is_floating_point())


def test_a_rank_that_hangs_is_noticed(gangs: Any) -> None:
    """Stopped, it closes no connection: as a machine without power, or a process that waits for a dead disk."""
    gang = gangs(2, replicas=2, train={"epochs": 100})
    eventually(lambda: len(gang.samples()) > 3, "it trains", 120)
    began = time.monotonic()
    gang.processes[1].send_signal(signal.SIGSTOP)
    assert gang.processes[0].wait(60) == ExitCode.PEER_LOST, gang.log()
    assert 10 < time.monotonic() - began < 30
    failure = gang.report().failure
    assert failure is not None
    assert failure.reason == "PeerLost"
    assert "rank 1 has not been heard of for 15 s" in failure.message


def test_a_port_scan_is_no_peer(gangs: Any) -> None:
    """Connections to rank 0's ports that say nothing, or nonsense, and go away do not end the training."""
    gang = gangs(2, replicas=2, train={"epochs": 4, "fraction": 200.0})
    eventually(lambda: len(gang.samples()) > 3, "it trains", 120)
    for port in _listening(gang.processes[0].pid):
        for words in ("", "GET / HTTP/1.0\r\n\r\n"):
            subprocess.run(["bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{port}; printf '{words}' >&3"], check=False)
    assert gang.wait() == [0, 0], gang.log()


def _listening(pid: int) -> list[int]:
    import psutil

    connections = psutil.Process(pid).net_connections("tcp")
    # Gloo's own listener and the store's are torch's business.
    return [c.laddr.port for c in connections if c.status == "LISTEN" and c.laddr.ip == "::"][-1:]


def test_a_disk_that_fills_up_costs_a_checkpoint_and_a_warning(gangs: Any, tmp_path: Path) -> None:
    """Full from the second epoch on, and free again before the end: the first checkpoint stays, the training goes on."""
    if os.geteuid() != 0:
        reason = "mounting a small disk needs root"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(out)], check=True)
    try:
        gang = gangs(1, replicas=1, train={"epochs": 8, "fraction": 200.0}, checkpoint={"everySeconds": 1})
        first = eventually(lambda: list((out / "checkpoints").glob("*.pt")), "a checkpoint", 120)[0]
        ballast = out / "ballast"
        subprocess.run(["dd", "if=/dev/zero", f"of={ballast}", "bs=1M"], check=False, capture_output=True)
        trained = len(gang.samples())
        eventually(lambda: len(gang.samples()) > trained + 40, "it trains on", 120)
        assert first.exists() or list((out / "checkpoints").glob("*.pt"))
        left = list((out / "checkpoints").glob("*.pt"))
        ballast.unlink()
        assert gang.wait() == [0], gang.log()
        report = gang.report()
        assert report.state == TrainerState.SUCCEEDED
        assert report.progress.checkpoint_failures
        assert any("No space left" in w for w in report.warnings)
        assert left
        assert (out / "weights" / "best.pt").stat().st_size > 0
    finally:
        subprocess.run(["umount", "-l", str(out)], check=True)


def test_the_best_model_is_there_whatever_the_checkpoint_interval(gangs: Any, tmp_path: Path) -> None:
    gang = gangs(1, replicas=1, train={"epochs": 4}, checkpoint={"everyEpochs": 3})
    assert gang.wait() == [0], gang.log()
    best = torch.load(tmp_path / "out" / "weights" / "best.pt", weights_only=False)
    rows = loss_rows(tmp_path / "out")
    result = gang.report().result
    assert result is not None
    assert best["train_metrics"]["metrics/mAP50-95(B)"] == pytest.approx(result.map)
    assert max(float(row["metrics/mAP50-95(B)"]) for row in rows) == pytest.approx(result.map, abs=1e-5)
    assert len(rows) == 4


def test_an_epoch_that_is_not_validated_is_no_best_one(gangs: Any, tmp_path: Path) -> None:
    gang = gangs(1, replicas=1, train={"epochs": 3, "val": False})
    assert gang.wait() == [0], gang.log()
    best = torch.load(tmp_path / "out" / "weights" / "best.pt", weights_only=False)
    assert best["train_metrics"]["fitness"] is not None


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_time_adds_up(gangs: Any, tmp_path: Path, world_size: int) -> None:
    """The parts are the wall clock, over an interruption, too; what nobody answers for is less than 2 %."""
    train = {"epochs": 5, "fraction": 400.0}
    began = time.time()
    gang = gangs(world_size, replicas=2, train=train, checkpoint={"everySeconds": 2})
    eventually(lambda: len(gang.samples()) > 80, "it trains", 120)
    gang.processes[-1].send_signal(signal.SIGTERM)
    assert set(gang.wait()) == {ExitCode.INTERRUPTED}, gang.log()
    wall = time.time() - began
    interrupted = gang.report()
    assert parts(interrupted) == pytest.approx(wall, rel=0.05), "exit and reaping are not the trainer's own"
    began = time.time()
    gang = gangs(world_size, replicas=2, train=train, checkpoint={"everySeconds": 2})
    assert gang.wait() == [0] * world_size, gang.log()
    wall += time.time() - began
    report = gang.report()
    assert parts(report) == pytest.approx(wall, rel=0.05)
    assert report.timing.training_seconds["other"] < 0.02 * parts(report)
    if world_size > 1:
        assert report.timing.all_reduce_with_overlap_seconds is not None
        assert report.timing.all_reduce_with_overlap_seconds > 0
    check_trace(tmp_path / "out" / "trace", world_size, report)


def parts(report: Report) -> float:
    timing = report.timing
    others = (timing.staging_seconds, timing.startup_seconds, timing.validation_seconds, timing.checkpoint_seconds)
    return sum(timing.training_seconds.values()) + sum(value or 0.0 for value in others)


def check_trace(folder: Path, world_size: int, report: Report) -> None:
    """A line for each step of each rank; rank 0's add up to the report, and follow one another without a gap."""
    assert sorted(p.name for p in folder.iterdir()) == [f"rank-{rank}" for rank in range(world_size)]
    for rank in range(world_size):
        lines = [
            json.loads(line)
            for path in sorted((folder / f"rank-{rank}").glob("epoch-*.attempt-1.jsonl"))
            for line in path.read_text().splitlines()
        ]
        steps = {(line["epoch"], line["step"]) for line in lines if "images" in line}
        assert steps == {(epoch, step) for epoch in range(5) for step in range(50)}
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
    """spec.storage.uri: s3://…"""

    def storage(self, bucket: Bucket) -> dict[str, Any]:
        return {"storage": {"uri": f"s3://{bucket.name}/runs/digits"}}

    def test_a_run_goes_on_from_the_bucket_on_another_machine(self, gangs: Any, bucket: Bucket, tmp_path: Path) -> None:
        train = {"epochs": 4, "fraction": 200.0}
        spec = {"replicas": 1, "train": train, "checkpoint": {"everySeconds": 1}, **self.storage(bucket)}
        first = gangs(1, **spec)
        eventually(lambda: len(first.samples()) > 30, "it trains", 120)
        first.processes[0].send_signal(signal.SIGTERM)
        assert first.wait() == [ExitCode.INTERRUPTED], first.log()
        saved = bucket.keys("runs/digits/checkpoints/")
        assert saved, "it waits for the upload before it ends"
        (tmp_path / "out").rename(tmp_path / "lost")
        second = gangs(1, **spec)
        assert second.wait() == [0], second.log()
        report = second.report()
        assert report.resumed_from is not None
        assert report.result is not None
        assert report.result.weights == f"s3://{bucket.name}/runs/digits/weights/best.pt"
        keys = set(bucket.keys("runs/digits/"))
        for name in ("weights/best.pt", "weights/last.pt", "results.csv"):
            local = tmp_path / "out" / name
            assert bucket.get(f"runs/digits/{name}") == local.read_bytes()
        assert len([k for k in keys if "/checkpoints/" in k]) == 2, "no more than spec.checkpoint.keep"
        assert any("/trace/rank-0/epoch-00004" in k for k in keys)
        assert any(k.startswith("runs/digits/weights") for k in keys)

    def test_a_bucket_that_fails_for_a_while_costs_a_warning(self, gangs: Any, bucket: Bucket, tmp_path: Path) -> None:
        down = [False]
        bucket.proxy.refuse = lambda method, _path: 503 if down[0] else 0
        gang = gangs(1, replicas=1, train={"epochs": 6, "fraction": 200.0}, **self.storage(bucket))
        eventually(lambda: len(gang.samples()) > 5, "it trains", 120)
        down[0] = True
        eventually(lambda: any(e == 2 for e, _, _ in gang.samples()), "it trains on without the bucket", 120)
        down[0] = False
        assert gang.wait() == [0], gang.log()
        for name in ("weights/best.pt", "results.csv"):
            assert bucket.get(f"runs/digits/{name}") == (tmp_path / "out" / name).read_bytes()

    def test_a_bucket_that_stays_away_fails_the_run_but_not_before_its_end(
        self, bucket: Bucket, tmp_path: Path
    ) -> None:
        """At the end there is nothing else to do than to wait, and then to say so."""
        from yolojob_trainer.checkpoint.bucket_mirror import Mirror
        from yolojob_trainer.data.object_store import Remote
        from yolojob_trainer.errors import TrainerError

        (tmp_path / "marker").write_text("x")
        failed: list[str] = []
        mirror = Mirror(tmp_path, Remote(f"s3://{bucket.name}/run", "spec.storage.uri", patience=0.5), failed.append)
        mirror.start("marker")
        bucket.proxy.refuse = lambda _m, _p: 503
        mirror.put(tmp_path / "marker")
        eventually(lambda: failed, "a failure is told", 30)
        with pytest.raises(TrainerError, match="not uploaded within 1 s: marker"):
            mirror.close(1)
        bucket.proxy.refuse = lambda _m, _p: 0
        mirror.close(30)
        assert bucket.get("run/marker") == b"x"

    def test_a_finished_run_started_again_uploads_what_is_missing(
        self, gangs: Any, bucket: Bucket, tmp_path: Path
    ) -> None:
        spec = {"replicas": 1, "train": {"epochs": 1}, **self.storage(bucket)}
        first = gangs(1, **spec)
        assert first.wait() == [0], first.log()
        for key in bucket.keys("runs/digits/weights"):
            bucket.remove(key)
        again = gangs(1, **spec)
        assert again.wait() == [0], again.log()
        best = (tmp_path / "out" / "weights" / "best.pt").read_bytes()
        assert bucket.get("runs/digits/weights/best.pt") == best

    def test_a_bucket_that_may_not_be_written_is_refused_before_anything_is_trained(
        self, gangs: Any, bucket: Bucket
    ) -> None:
        gang = gangs(1, replicas=1, environment={"AWS_SECRET_ACCESS_KEY": "wrong"}, **self.storage(bucket))
        assert gang.wait() == [ExitCode.BAD_INPUT], gang.log()
        failure = gang.report().failure
        assert failure is not None
        assert failure.reason == "StorageDenied"
        assert failure.message.startswith(f"spec.storage.uri: s3://{bucket.name}/runs/digits: access denied")
        assert gang.samples() == []


def test_data_set_and_weights_from_a_bucket(gangs: Any, bucket: Bucket, cache: Path, tmp_path: Path) -> None:
    import io
    import zipfile

    first = gangs(1, replicas=1)
    assert first.wait() == [0], first.log()
    digits = next(cache.glob("datasets/digits-v*"))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(digits.rglob("*.*")):
            file.write(path, f"digits/{path.relative_to(digits)}")
    bucket.put("digits.zip", archive.getvalue())
    bucket.put("weights/start.pt", (tmp_path / "out" / "weights" / "best.pt").read_bytes())
    (tmp_path / "out").rename(tmp_path / "first")
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
    assert len(archives) == 1, "two ranks on one node fetch it once"
