"""Staging copies data from real servers to this node once and completely, also when servers, networks or processes
fail.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import eventually
from support.processes import free_port
from support.stores import Bucket, https
from yolojob_trainer.data import staging
from yolojob_trainer.data.job_dataset import locate
from yolojob_trainer.data.object_store import ObjectStore, Unavailable
from yolojob_trainer.data.staging import Stage
from yolojob_trainer.errors import BadInput

from yolojob.api.spec import Dataset

pytestmark = pytest.mark.processes

FIELD = "spec.dataset.uri"


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def stage(folder: Path, seen: list[tuple[int, int | None]] | None = None) -> Stage:
    return Stage(folder, lambda there, total: seen.append((there, total)) if seen is not None else None, FIELD)


def remote(uri: str, retry_timeout: float = 20.0) -> ObjectStore:
    return ObjectStore(uri, FIELD, retry_timeout)


@pytest.fixture
def files(bucket: Bucket) -> dict[str, bytes]:
    """A small dataset in the bucket under set/."""
    files = {f"images/train/{i}.png": os.urandom(1000 + i) for i in range(20)}
    files |= {"data.yaml": b"names: [a]", "empty.txt": b"", "labels/train/0 ä.txt": b"0 .5 .5 .1 .1"}
    for name, data in files.items():
        bucket.put(f"set/{name}", data)
    bucket.put("set/images/", b"")  # a "folder", as web consoles create them
    return files


def gets(bucket: Bucket) -> int:
    """Number of requests for the content of an object."""
    return sum(m == "GET" and "list-type" not in path for m, path in bucket.proxy.requests)


def test_stage_of_a_prefix_fetches_it_once_and_again_after_a_change(
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


def test_stage_with_refused_and_cut_requests_fetches_everything(
    bucket: Bucket, files: dict[str, bytes], tmp_path: Path
) -> None:
    """Every third request is answered with 503, every fifth is cut within its body."""
    count = [0]

    def refuse(_method: str, _path: str) -> int:
        count[0] += 1
        return 503 if count[0] % 3 == 0 else 0

    bucket.proxy.refuse = refuse
    bucket.proxy.cut = lambda _m, path: 500 if count[0] % 5 == 0 and "png" in path else -1
    assert contents(stage(tmp_path).fetch(remote(f"s3://{bucket.name}/set"))) == files
    assert count[0] > len(files) * 1.3, "the faults did not happen"


def test_stage_of_an_unavailable_store_and_of_a_wrong_address_raises_different_errors(
    bucket: Bucket, tmp_path: Path
) -> None:
    bucket.proxy.refuse = lambda _m, _p: 503
    with pytest.raises(Unavailable) as unavailable:
        stage(tmp_path).fetch(remote(f"s3://{bucket.name}/set", retry_timeout=0.5))
    assert bucket.name in str(unavailable.value)
    bucket.proxy.refuse = lambda _m, _p: 0
    for uri, message in ((f"s3://{bucket.name}/nothing", "there are no files"), ("s3://no-such/x", "does not exist")):
        with pytest.raises(BadInput, match=message) as missing:
            stage(tmp_path).fetch(remote(uri))
        assert missing.value.reason == "StorageNotFound"
        assert str(missing.value).startswith(f"{FIELD}: {uri}")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"AWS_ACCESS_KEY_ID": "AKIAWRONG"}, "does not exist in our records"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "signature"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "Unable to locate credentials"),
    ],
)
def test_stage_with_wrong_credentials_fails_without_a_retry(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], message: str
) -> None:
    bucket.put("set/a", b"a")
    for name, value in environment.items():
        if value:
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.delenv(name)
    with pytest.raises(BadInput, match=message) as denied:
        stage(tmp_path).fetch(remote(f"s3://{bucket.name}/set", retry_timeout=60))
    requests = bucket.proxy.requests
    assert len(requests) == len(set(requests)), "a request with a wrong key was repeated"
    assert denied.value.reason == "StorageDenied"
    assert "AWS_ACCESS_KEY_ID" in str(denied.value)


FETCH = """
import sys
from pathlib import Path
from yolojob_trainer.data.object_store import ObjectStore
from yolojob_trainer.data.staging import Stage

from yolojob.api.spec import Dataset
print(Stage(Path(sys.argv[1]), lambda *_: None, "f").fetch(ObjectStore(sys.argv[2], "f")))
"""


def test_stage_in_three_processes_at_once_fetches_each_file_once(
    bucket: Bucket, files: dict[str, bytes], tmp_path: Path
) -> None:
    command = [sys.executable, "-c", FETCH, str(tmp_path), f"s3://{bucket.name}/set"]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    folders = {worker.communicate(timeout=60)[0].strip() for worker in workers}
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    assert len(folders) == 1
    assert contents(Path(folders.pop())) == files
    assert gets(bucket) == sum(1 for data in files.values() if data)


def test_stage_after_a_killed_process_fetches_only_the_rest(bucket: Bucket, tmp_path: Path) -> None:
    """The process is killed in the middle of a large archive."""
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
    eventually(lambda: sum(p.stat().st_size for p in cache.rglob("*.part")) >= 16 << 20, "16 MiB have arrived", 60)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    bucket.proxy.released.set()
    starts: list[int] = []

    def record(start: int) -> bool:
        starts.append(start)
        return False

    bucket.proxy.holds = record
    fetched = sum(p.stat().st_size for p in cache.rglob("*.part"))
    seen: list[tuple[int, int | None]] = []
    folder = stage(cache, seen).fetch(remote(uri))
    assert (folder / "blob.bin").stat().st_size == size
    assert seen[0][0] == min(starts) == fetched


def test_stage_without_enough_disk_space_fails_before_it_fetches(
    bucket: Bucket, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "RESERVED_BYTES", shutil.disk_usage(tmp_path).free)
    before = gets(bucket)
    with pytest.raises(BadInput, match="MiB are to be staged") as full:
        stage(tmp_path).fetch(remote(f"s3://{bucket.name}/set"))
    assert full.value.reason == "NoSpace"
    assert gets(bucket) == before, "something was fetched"


def test_stage_of_a_key_that_leads_out_of_the_folder_is_refused(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("set/../../evil.txt", b"x")
    with pytest.raises(BadInput, match="leads out of the dataset"):
        stage(tmp_path / "cache").fetch(remote(f"s3://{bucket.name}/set"))
    assert not list(tmp_path.rglob("evil.txt"))


@pytest.mark.parametrize("ranges", [True, False])
def test_stage_of_an_https_archive_over_a_broken_connection_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranges: bool
) -> None:
    served = tmp_path / "www"
    served.mkdir()
    with zipfile.ZipFile(served / "set.zip", "w") as file:
        file.writestr("coco/data.yaml", "names: [a]")
        file.writestr("coco/blob.bin", os.urandom(3 << 20))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with https(served, tmp_path, ranges=ranges, cut_first=1 << 20) as (address, requested):
        folder = stage(tmp_path / "cache").fetch(remote(f"{address}/set.zip?signature=secret"))
        assert (folder / "coco" / "blob.bin").stat().st_size == 3 << 20
        resumed = [r for r in requested if r and not r.startswith("bytes=0-")]
        assert len(resumed) == 1, requested
        assert stage(tmp_path / "cache").fetch(remote(f"{address}/set.zip?signature=newer")) == folder
        with pytest.raises(BadInput, match="does not exist") as missing:
            stage(tmp_path / "cache").fetch(remote(f"{address}/other.zip?signature=secret"))
        assert "secret" not in str(missing.value)


def test_stage_of_an_https_archive_with_an_unknown_certificate_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set.zip").write_bytes(b"x")
    with https(tmp_path, tmp_path, ranges=True) as (address, _), pytest.raises(Exception, match=r"(?i)certificate"):
        stage(tmp_path / "cache").fetch(remote(f"{address}/set.zip", retry_timeout=1))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "http://localhost:9/latest/meta-data",
            "leads to 'http://localhost:9/latest/meta-data', which is not",
        ),
        ("https://169.254.169.254/latest", "leads to 169.254.169.254, which is not a public address"),
        ("https://127.0.0.1:9/x", "leads to 127.0.0.1, which is not a public address"),
        ("https://[::1]:9/x", "which is not a public address"),
    ],
)
@pytest.mark.parametrize("header", ["Location", "URI"])
def test_stage_of_an_https_archive_follows_no_redirect_into_the_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, message: str, header: str
) -> None:
    """A pod reaches the metadata server of its node, which hands out credentials."""
    (tmp_path / "set.zip").write_bytes(b"x")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with https(tmp_path, tmp_path, ranges=True, redirect=(header, target)) as (address, _):
        with pytest.raises(BadInput, match=re.escape(message)) as refused:
            stage(tmp_path / "cache").fetch(remote(f"{address}/set.zip", retry_timeout=1))
        assert refused.value.reason == "StorageUntrusted"


def test_stage_of_google_cloud_storage_fetches_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same code as for S3, against an emulator of Google's API."""
    from gcp_storage_emulator.server import create_server  # type: ignore[import-untyped]

    port = free_port()
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket="data")
    server.start()
    try:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        source = tmp_path / "a.bin"
        # The emulator strips line breaks from the end of an object.
        source.write_bytes(os.urandom(100_000) + b"end")
        bucket = ObjectStore("gs://data/set", FIELD, 10)
        bucket.write(source, "images/a.bin")
        folder = stage(tmp_path / "cache").fetch(ObjectStore("gs://data/set", FIELD, 10))
        assert contents(folder) == {"images/a.bin": source.read_bytes()}
        bucket.remove("images/a.bin")
        with pytest.raises(BadInput, match="there are no files"):
            ObjectStore("gs://data/set", FIELD, 3).files()
    finally:
        server.stop()


def test_locate_of_an_archive_in_a_volume_unpacks_it_into_the_cache(tmp_path: Path) -> None:
    volumes, cache = tmp_path / "volumes", tmp_path / "cache"
    (volumes / "data").mkdir(parents=True)
    with zipfile.ZipFile(volumes / "data" / "coco.zip", "w") as file:
        file.writestr("coco/data.yaml", "names: [a]")
    dataset = Dataset.model_validate({"uri": "pvc://data/coco.zip"})
    folder = locate(dataset, cache=cache, volumes=volumes, progress=lambda *_: None)
    assert contents(folder) == {"coco/data.yaml": b"names: [a]"}
    assert folder.is_relative_to(cache)
    assert locate(dataset, cache=cache, volumes=volumes, progress=lambda *_: None) == folder
    with zipfile.ZipFile(volumes / "data" / "coco.zip", "w") as file:
        file.writestr("coco/data.yaml", "names: [a, b]")
    os.utime(volumes / "data" / "coco.zip", (1, 1))
    assert locate(dataset, cache=cache, volumes=volumes, progress=lambda *_: None) != folder


def test_make_called_twice_writes_once(tmp_path: Path) -> None:
    calls: list[Path] = []

    def write(folder: Path) -> None:
        calls.append(folder)
        (folder / "a").write_text("a")

    first = stage(tmp_path).make("digits", write)
    assert stage(tmp_path).make("digits", write) == first
    assert len(calls) == 1
    assert contents(first) == {"a": b"a"}


@pytest.mark.parametrize("share", ["0", "0.15"])
def test_stage_leaves_a_share_of_the_disk_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: str) -> None:
    monkeypatch.setenv("YOLOJOB_RESERVED_DISK_SHARE", share)
    usage = SimpleNamespace(total=1000 << 30, free=140 << 30)
    monkeypatch.setattr("yolojob_trainer.data.staging.shutil.disk_usage", lambda _: usage)
    if share == "0":
        stage(tmp_path)._check_space(1 << 30)  # noqa: SLF001 - the real disk cannot be filled
    else:
        with pytest.raises(BadInput, match=r"only 0 MiB may be used \(143360 MiB are free\)"):
            stage(tmp_path)._check_space(1 << 30)  # noqa: SLF001


def disk(inodes: int) -> os.statvfs_result:
    """A file system with much space and so many free inodes."""
    blocks = 1 << 30
    return os.statvfs_result((4096, 4096, blocks, blocks, blocks, 10**6, inodes, inodes, 0, 255))


def test_stage_without_enough_inodes_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yolojob_trainer.data.staging.os.statvfs", lambda _: disk(inodes=20_000))
    stage(tmp_path)._check_space(0, 10_000)  # noqa: SLF001
    with pytest.raises(BadInput, match=r"10001 files are to be staged in .* has room for only 10000"):
        stage(tmp_path)._check_space(0, 10_001)  # noqa: SLF001


def test_unpacking_asks_for_every_file_of_a_tar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tar of empty files takes no bytes, but inodes."""
    path = tmp_path / "many.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(50):
            tar.addfile(tarfile.TarInfo(f"f{number}"))
    left = [staging.RESERVED_FILES + 20]

    def statvfs(_: object) -> os.statvfs_result:
        left[0] -= 1
        return disk(inodes=left[0])

    monkeypatch.setattr("yolojob_trainer.data.staging.os.statvfs", statvfs)
    with pytest.raises(BadInput, match="has room for only"):
        stage(tmp_path / "cache").unpack(path)


@pytest.mark.parametrize("right", [True, False])
def test_checksum_in_the_uri_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, right: bool) -> None:
    served, cache = tmp_path / "www", tmp_path / "cache"
    served.mkdir()
    with zipfile.ZipFile(served / "set.zip", "w") as file:
        file.writestr("data.yaml", "names: [a]")
    digest = hashlib.sha256((served / "set.zip").read_bytes() if right else b"other").hexdigest()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with https(served, tmp_path, ranges=True) as (address, _):
        store = remote(f"{address}/set.zip#sha256={digest}")
        if right:
            assert (stage(cache).fetch(store) / "data.yaml").exists()
            return
        with pytest.raises(BadInput, match=f"has the SHA-256 [0-9a-f]+, not {digest}"):
            stage(cache).fetch(store)
    assert not list(cache.rglob("download"))
