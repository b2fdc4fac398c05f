"""Two jobs with one folder of an object store: the second waits or is refused, and nothing is overwritten."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from support import eventually
from support.stores import Bucket
from yolojob_trainer.checkpoint import bucket_mirror, run_ownership
from yolojob_trainer.checkpoint.bucket_mirror import Mirror
from yolojob_trainer.checkpoint.run_ownership import CLAIM_SECONDS, BucketClaim
from yolojob_trainer.data.object_store import ObjectStore
from yolojob_trainer.errors import BadInput

pytestmark = pytest.mark.processes


class Clock:
    """A clock that moves only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def claim(bucket: Bucket, owner: str, clock: Clock) -> BucketClaim:
    return BucketClaim(ObjectStore(f"s3://{bucket.name}/run", "spec.storage.uri", retry_timeout=0.5), owner, clock)


def acquire(one: BucketClaim, clock: Clock) -> list[str]:
    waits: list[str] = []
    one.acquire(waits.append, clock.sleep)
    return waits


def test_second_job_is_refused_while_the_first_renews_its_claim(bucket: Bucket) -> None:
    clock = Clock()
    first, second = claim(bucket, "team/a", clock), claim(bucket, "team/b", clock)
    assert acquire(first, clock) == []

    def sleep(seconds: float) -> None:
        clock.sleep(20 * seconds)
        first.renew()

    with pytest.raises(BadInput, match=r"is in use by team/a: choose another spec\.storage\.uri") as refused:
        second.acquire(lambda _: None, sleep)
    assert refused.value.reason == "StorageInUse"
    assert json.loads(bucket.get("run/.yolojob"))["owner"] == "team/a"


def test_claim_of_a_killed_job_expires(bucket: Bucket) -> None:
    clock = Clock()
    acquire(claim(bucket, "team/a", clock), clock)
    began = clock.now
    waits = acquire(claim(bucket, "team/b", clock), clock)
    assert len(waits) == 1
    assert "team/a" in waits[0]
    assert CLAIM_SECONDS <= clock.now - began <= 2 * CLAIM_SECONDS


def test_next_attempt_and_released_claim_do_not_wait(bucket: Bucket) -> None:
    clock = Clock()
    first = claim(bucket, "team/a", clock)
    acquire(first, clock)
    second = claim(bucket, "team/a", clock)
    assert acquire(second, clock) == [], "the next attempt of the same job"
    first.release()
    assert json.loads(bucket.get("run/.yolojob"))["time"] == clock.now, "an old attempt releases only its own claim"
    second.release()
    assert acquire(claim(bucket, "team/b", clock), clock) == []


@pytest.mark.parametrize("owner", ["team/b", "team/a"])
def test_run_whose_claim_was_overwritten_ends(bucket: Bucket, owner: str) -> None:
    """By another job that started at the same moment, or by the next attempt of this one."""
    clock = Clock()
    first, second = claim(bucket, "team/a", clock), claim(bucket, owner, clock)
    acquire(first, clock)
    bucket.remove("run/.yolojob")  # as if the second had looked before the first wrote
    acquire(second, clock)
    clock.sleep(CLAIM_SECONDS / 2)
    second.renew()
    with pytest.raises(BadInput, match=f"is in use by {owner}"):
        first.renew()


@pytest.mark.parametrize("moment", [0.0, 1e9 - 2 * CLAIM_SECONDS])
def test_run_survives_an_old_claim_of_another(bucket: Bucket, moment: float) -> None:
    clock = Clock()
    first = claim(bucket, "team/a", clock)
    acquire(first, clock)
    bucket.put("run/.yolojob", json.dumps({"owner": "team/b", "run": "x", "time": moment}).encode())
    clock.sleep(CLAIM_SECONDS / 2)
    first.renew()
    assert json.loads(bucket.get("run/.yolojob"))["owner"] == "team/a"


def test_mirror_renews_its_claim_without_uploads(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_mirror, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(run_ownership, "CLAIM_SECONDS", 0.3)
    mirror = Mirror(tmp_path, ObjectStore(f"s3://{bucket.name}/run", "f", 5), "team/a", lambda _: None)
    mirror.start()
    first = json.loads(bucket.get("run/.yolojob"))["time"]
    eventually(lambda: json.loads(bucket.get("run/.yolojob"))["time"] > first, "the claim is renewed")
    mirror.close(30)
    assert json.loads(bucket.get("run/.yolojob"))["time"] == 0


def test_claim_that_is_released_while_a_thread_renews_it_stays_released(bucket: Bucket) -> None:
    """Otherwise the next job would wait until the claim expires."""
    times = Clock()
    mine = claim(bucket, "team/a", times)
    acquire(mine, times)
    writes = threading.Event()
    continues = threading.Event()

    def write(data: bytes, path: str) -> None:
        writes.set()
        assert continues.wait(60)
        write_bytes(data, path)

    store = mine._store  # noqa: SLF001 - the moment between the two requests of a renewal cannot be met from outside
    write_bytes, store.write_bytes = store.write_bytes, write  # type: ignore[method-assign]
    times.now += 1000
    renewal = threading.Thread(target=mine.renew)
    renewal.start()
    assert writes.wait(60)
    release = threading.Thread(target=mine.release)
    release.start()
    continues.set()
    renewal.join(60)
    release.join(60)
    assert json.loads(bucket.get("run/.yolojob"))["time"] == 0
    times.now += 1000
    mine.renew()
    assert json.loads(bucket.get("run/.yolojob"))["time"] == 0


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"owner": "x"}', b'{"owner": "x", "time": "y"}', b"\xff"])
def test_unreadable_claim_is_no_claim(bucket: Bucket, content: bytes) -> None:
    bucket.put("run/.yolojob", content)
    assert acquire(claim(bucket, "team/a", Clock()), Clock()) == []
