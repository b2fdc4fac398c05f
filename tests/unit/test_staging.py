"""Data comes from real servers to this node: once, whole, also when servers, networks and processes fail."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from support import eventually
from support.stores import Bucket, https
from yolojob_trainer.data import staging
from yolojob_trainer.data.dataset_config import locate
from yolojob_trainer.data.object_store import Remote, Unavailable
from yolojob_trainer.data.staging import Stage
from yolojob_trainer.errors import BadInput

from yolojob.api.spec import Dataset

FIELD = "spec.dataset.uri"


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def stage(folder: Path, seen: list[tuple[int, int | None]] | None = None) -> Stage:
    return Stage(folder, lambda there, total: seen.append((there, total)) if seen is not None else None, FIELD)


def remote(uri: str, patience: float = 20.0) -> Remote:
    return Remote(uri, FIELD, patience)


@pytest.fixture
def files(bucket: Bucket) -> dict[str, bytes]:
    """A small data set in the bucket under set/."""
    files = {f"images/train/{i}.png": os.urandom(1000 + i) for i in range(20)}
    files |= {"data.yaml": b"names: [a]", "empty.txt": b"", "labels/train/0 ä.txt": b"0 .5 .5 .1 .1"}
    for name, data in files.items():
        bucket.put(f"set/{name}", data)
    bucket.put("set/images/", b"")  # a "folder", as consoles make them
    return files


def gets(bucket: Bucket) -> int:
    return sum(m == "GET" and "list-type" not in path for m, path in bucket.proxy.requests)


def test_a_prefix_is_staged_once_and_again_when_it_changes(
    bucket: Bucket, files: dict[str, bytes], tmp_path: Path
) -> None:
    seen: list[tuple[int, int | None]] = []
    folder = stage(tmp_path, seen).fetch(remote(f"s3://{bucket.name}/set"))
    assert contents(folder) == files
    total = sum(map(len, files.values()))
    assert seen[0] == (0, total)
    assert seen[-1] == (total, total)
    before = gets(bucket)
    assert stage(tmp_path).fetch(remote(f"s3://{bucket.name}/set")) == folder
    assert stage(tmp_path).fetch(remote(f"s3://{bucket.name}/set/")) == folder
    assert gets(bucket) == before
    bucket.put("set/images/train/0.png", b"another")
    changed = stage(tmp_path).fetch(remote(f"s3://{bucket.name}/set"))
    assert changed != folder
    assert contents(changed) == files | {"images/train/0.png": b"another"}
    assert not list(tmp_path.glob(".*.partial"))


def test_503s_and_cut_connections_are_survived(bucket: Bucket, files: dict[str, bytes], tmp_path: Path) -> None:
    """Every third request is refused, every fifth is cut within its body."""
    count = [0]

    def refuse(_method: str, _path: str) -> int:
        count[0] += 1
        return 503 if count[0] % 3 == 0 else 0

    bucket.proxy.refuse = refuse
    bucket.proxy.cut = lambda _m, path: 500 if count[0] % 5 == 0 and "png" in path else -1
    assert contents(stage(tmp_path).fetch(remote(f"s3://{bucket.name}/set"))) == files
    assert count[0] > len(files) * 1.3, "the faults have happened"


def test_a_store_that_stays_away_is_told_from_a_wrong_address(bucket: Bucket, tmp_path: Path) -> None:
    bucket.proxy.refuse = lambda _m, _p: 503
    with pytest.raises(Unavailable) as unavailable:
        stage(tmp_path).fetch(remote(f"s3://{bucket.name}/set", patience=2))
    assert bucket.name in str(unavailable.value)
    bucket.proxy.refuse = lambda _m, _p: 0
    for uri, words in ((f"s3://{bucket.name}/nothing", "there are no files"), ("s3://no-such/x", "does not exist")):
        with pytest.raises(BadInput, match=words) as missing:
            stage(tmp_path).fetch(remote(uri))
        assert missing.value.reason == "StorageNotFound"
        assert str(missing.value).startswith(f"{FIELD}: {uri}")


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"AWS_ACCESS_KEY_ID": "AKIAWRONG"}, "does not exist in our records"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "signature"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "Unable to locate credentials"),
    ],
)
def test_wrong_credentials_are_named_at_once(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], words: str
) -> None:
    bucket.put("set/a", b"a")
    for name, value in environment.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    began = time.monotonic()
    with pytest.raises(BadInput, match=words) as denied:
        stage(tmp_path).fetch(remote(f"s3://{bucket.name}/set", patience=60))
    assert time.monotonic() - began < 20, "a wrong key is not tried again"
    assert denied.value.reason == "StorageDenied"
    assert "AWS_ACCESS_KEY_ID" in str(denied.value)


FETCH = """
import sys
from pathlib import Path
from yolojob_trainer.data.object_store import Remote
from yolojob_trainer.data.staging import Stage

from yolojob.api.spec import Dataset
print(Stage(Path(sys.argv[1]), lambda *_: None, "f").fetch(Remote(sys.argv[2], "f")))
"""


def test_workers_that_stage_at_once_fetch_each_file_once(
    bucket: Bucket, files: dict[str, bytes], tmp_path: Path
) -> None:
    command = [sys.executable, "-c", FETCH, str(tmp_path), f"s3://{bucket.name}/set"]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    folders = {worker.communicate(timeout=60)[0].strip() for worker in workers}
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    assert len(folders) == 1
    assert contents(Path(folders.pop())) == files
    assert gets(bucket) == sum(1 for data in files.values() if data)


def test_what_a_killed_worker_had_fetched_is_used(bucket: Bucket, tmp_path: Path) -> None:
    """Killed in the middle of one large archive: the next one asks only for the rest."""
    size = 40 << 20
    source = tmp_path / "large.zip"
    with zipfile.ZipFile(source, "w") as file:
        file.writestr("data.yaml", "names: [a]")
        file.writestr("blob.bin", os.urandom(size))
    bucket.put("large.zip", source.read_bytes())
    uri = f"s3://{bucket.name}/large.zip"
    bucket.proxy.holds = lambda start: start >= 16 << 20
    cache = tmp_path / "cache"
    worker = subprocess.Popen([sys.executable, "-c", FETCH, str(cache), uri], stdout=subprocess.DEVNULL)
    eventually(lambda: sum(p.stat().st_size for p in cache.rglob("*.part")) >= 16 << 20, "half is there", 60)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    asked: list[int] = []

    def note(start: int) -> bool:
        asked.append(start)
        return False

    bucket.proxy.holds = note
    there = sum(p.stat().st_size for p in cache.rglob("*.part"))
    seen: list[tuple[int, int | None]] = []
    folder = stage(cache, seen).fetch(remote(uri))
    assert (folder / "blob.bin").stat().st_size == size
    assert seen[0][0] == min(asked) == there


def test_a_full_disk_is_foreseen(
    bucket: Bucket, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "SPARE", shutil.disk_usage(tmp_path).free)
    before = gets(bucket)
    with pytest.raises(BadInput, match="MiB are to be staged") as full:
        stage(tmp_path).fetch(remote(f"s3://{bucket.name}/set"))
    assert full.value.reason == "NoSpace"
    assert gets(bucket) == before, "nothing was fetched"


def test_a_key_that_leads_out_of_the_folder_is_refused(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("set/../../evil.txt", b"x")
    with pytest.raises(BadInput, match="leads out of the data set"):
        stage(tmp_path / "cache").fetch(remote(f"s3://{bucket.name}/set"))
    assert not list(tmp_path.rglob("evil.txt"))


@pytest.mark.parametrize("ranges", [True, False])
def test_https_archive_over_a_connection_that_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranges: bool
) -> None:
    served = tmp_path / "www"
    served.mkdir()
    with zipfile.ZipFile(served / "set.zip", "w") as file:
        file.writestr("coco/data.yaml", "names: [a]")
        file.writestr("coco/blob.bin", os.urandom(3 << 20))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with https(served, tmp_path, ranges=ranges, cut_first=1 << 20) as (address, asked):
        folder = stage(tmp_path / "cache").fetch(remote(f"{address}/set.zip?signature=secret"))
        assert (folder / "coco" / "blob.bin").stat().st_size == 3 << 20
        resumed = [r for r in asked if r and not r.startswith("bytes=0-")]
        assert len(resumed) == 1, asked
        assert stage(tmp_path / "cache").fetch(remote(f"{address}/set.zip?signature=newer")) == folder
        with pytest.raises(BadInput, match="is not there") as missing:
            stage(tmp_path / "cache").fetch(remote(f"{address}/other.zip?signature=secret"))
        assert "secret" not in str(missing.value)


def test_https_with_an_unknown_certificate_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set.zip").write_bytes(b"x")
    with https(tmp_path, tmp_path, ranges=True) as (address, _), pytest.raises(Exception, match=r"(?i)certificate"):
        stage(tmp_path / "cache").fetch(remote(f"{address}/set.zip", patience=1))


def test_google_cloud_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against an emulator of its API: the same code as for S3, other words."""
    from gcp_storage_emulator.server import create_server

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket="data")
    server.start()
    try:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        source = tmp_path / "a.bin"
        source.write_bytes(os.urandom(100_000))
        bucket = Remote("gs://data/set", FIELD, 10)
        bucket.write(source, "images/a.bin")
        folder = stage(tmp_path / "cache").fetch(Remote("gs://data/set", FIELD, 10))
        assert contents(folder) == {"images/a.bin": source.read_bytes()}
        bucket.remove("images/a.bin")
        with pytest.raises(BadInput, match="there are no files"):
            Remote("gs://data/set", FIELD, 3).files()
    finally:
        server.stop()


def test_an_archive_in_a_volume_is_unpacked_into_the_cache(tmp_path: Path) -> None:
    volumes, cache = tmp_path / "volumes", tmp_path / "cache"
    (volumes / "data").mkdir(parents=True)
    with zipfile.ZipFile(volumes / "data" / "coco.zip", "w") as file:
        file.writestr("coco/data.yaml", "names: [a]")
    where = Dataset(uri="pvc://data/coco.zip")
    folder = locate(where, cache=cache, volumes=volumes, progress=lambda *_: None)
    assert contents(folder) == {"data.yaml": b"names: [a]"}
    assert folder.is_relative_to(cache)
    assert locate(where, cache=cache, volumes=volumes, progress=lambda *_: None) == folder
    with zipfile.ZipFile(volumes / "data" / "coco.zip", "w") as file:
        file.writestr("coco/data.yaml", "names: [a, b]")
    os.utime(volumes / "data" / "coco.zip", (1, 1))
    assert locate(where, cache=cache, volumes=volumes, progress=lambda *_: None) != folder


def test_digits_are_written_once(tmp_path: Path) -> None:
    calls: list[Any] = []

    def write(folder: Path) -> None:
        calls.append(folder)
        (folder / "a").write_text("a")

    first = stage(tmp_path).make("digits", write)
    assert stage(tmp_path).make("digits", write) == first
    assert len(calls) == 1
    assert contents(first) == {"a": b"a"}
