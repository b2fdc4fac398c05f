"""Datasets and weights in a real OCI registry, over TLS and with a login."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from devcluster.settings import BIN
from support import eventually
from support.oci_registry import EMPTY, manifest_of
from support.processes import free_port

from yolojob.api import uri as uris

pytest.importorskip("fsspec", reason="the trainer's packages are not installed: make env")

from yolojob_trainer.data.oci_store import OciStore
from yolojob_trainer.data.staging import Stage
from yolojob_trainer.errors import BadInput

FIELD = "spec.dataset.uri"
LOGIN = base64.b64encode(b"user:password").decode()
HTPASSWD = "user:$2b$05$duroC366UCAoT7FODXGOb./DJvHPDhSiKKgk7FK3datuHYTpHFGCS\n"
"""The same login; the registry knows only bcrypt."""
FILES = {"data.yaml": b"names: [a]\n", "images/a.jpg": os.urandom(9 << 20), "empty.txt": b""}


def send(method: str, url: str, data: bytes = b"", kind: str = "application/octet-stream") -> dict[str, str]:
    """Sends a request with the login; returns the headers of the answer."""
    headers = {"Authorization": f"Basic {LOGIN}", "Content-Type": kind}
    request = urllib.request.Request(url, data, headers, method=method)
    with urllib.request.urlopen(request) as answer:
        return dict(answer.headers)


def push(address: str, repository: str, tag: str, files: dict[str, bytes]) -> str:
    """Stores an artifact as `oras push` does; returns its digest."""
    base = f"https://{address}/v2/{repository}"
    for data in (*files.values(), EMPTY):
        location = send("POST", f"{base}/blobs/uploads/")["Location"]
        send("PUT", f"{location}&digest=sha256:{hashlib.sha256(data).hexdigest()}", data)
    manifest = manifest_of(files)
    headers = send("PUT", f"{base}/manifests/{tag}", json.dumps(manifest).encode(), manifest["mediaType"])
    return headers["Docker-Content-Digest"]


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a registry on this machine."""
    import trustme

    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    address = f"localhost:{free_port()}"
    (tmp_path / "registry.yml").write_text(
        "version: 0.1\nlog: {level: warn}\n"
        f"storage: {{filesystem: {{rootdirectory: {tmp_path}/content}}}}\n"
        f"auth: {{htpasswd: {{realm: test, path: {tmp_path}/htpasswd}}}}\n"
        f"http: {{addr: '{address}', tls: {{certificate: {tmp_path}/server.pem, key: {tmp_path}/server.pem}}}}\n"
    )
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"auths": {address: {"auth": LOGIN}}}))

    def answers() -> bool:
        try:
            return bool(send("GET", f"https://{address}/v2/"))
        except OSError:
            return False

    with (tmp_path / "log").open("wb") as log:
        environment = {**os.environ, "OTEL_TRACES_EXPORTER": "none"}
        command = [str(BIN / "registry"), "serve", str(tmp_path / "registry.yml")]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        eventually(answers, "the registry answers")
        yield address
    finally:
        process.kill()
        process.wait()


def fetch(text: str, cache: Path) -> dict[str, bytes]:
    store = OciStore(uris.parse(text, uris.DATASET_SCHEMES), FIELD, retry_timeout=5.0)
    folder = Stage(cache, lambda *_: None, FIELD).fetch(store)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_pushed_artifact_is_fetched_by_tag_and_by_digest(registry: str, tmp_path: Path) -> None:
    digest = push(registry, "team/signs", "v1", FILES)
    assert fetch(f"oci://{registry}/team/signs:v1", tmp_path / "one") == FILES
    assert fetch(f"oci://{registry}/team/signs@{digest}", tmp_path / "two") == FILES
    assert fetch(f"oci://{registry}/team/signs:v1#data.yaml", tmp_path / "three") == {"data.yaml": FILES["data.yaml"]}
    push(registry, "team/signs", "v1", {"data.yaml": b"names: [b]\n"})
    assert fetch(f"oci://{registry}/team/signs:v1", tmp_path / "one") == {"data.yaml": b"names: [b]\n"}
    assert fetch(f"oci://{registry}/team/signs:v1@{digest}", tmp_path / "one") == FILES


def test_missing_artifact_and_wrong_login_are_refused(registry: str, tmp_path: Path) -> None:
    push(registry, "signs", "v1", {"a.txt": b"a"})
    with pytest.raises(BadInput, match="signs:v2: does not exist"):
        fetch(f"oci://{registry}/signs:v2", tmp_path / "cache")
    (tmp_path / "config.json").unlink()
    with pytest.raises(BadInput, match=f"access denied; check the login for {registry}"):
        fetch(f"oci://{registry}/signs:v1", tmp_path / "cache")
