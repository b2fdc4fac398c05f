"""Datasets and weights in OCI registries: logins, tokens, checksums, and artifacts that are refused."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.oci_registry import Registry, digest_of, manifest_of, registry
from yolojob_trainer.data import mirror
from yolojob_trainer.data.job_dataset import locate
from yolojob_trainer.data.object_store import Unavailable
from yolojob_trainer.data.oci_store import OciStore, reference
from yolojob_trainer.data.staging import Stage
from yolojob_trainer.errors import BadInput

from yolojob.api import uri as uris
from yolojob.api.reasons import Reason
from yolojob.api.spec import Dataset

FIELD = "spec.model.weights.uri"
LOGIN = base64.b64encode(b"user:password").decode()
FILES = {"data.yaml": b"names: [a]", "images/a.jpg": b"x" * 100_000}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    with registry(tmp_path) as state:
        yield state


def store(server: Registry, rest: str) -> OciStore:
    return OciStore(uris.parse(f"oci://{server.host}/{rest}", uris.WEIGHTS_SCHEMES), FIELD, retry_timeout=1.0)


def fetch(server: Registry, rest: str, cache: Path) -> dict[str, bytes]:
    """Stages an artifact; returns the content of its files by their paths."""
    folder = Stage(cache, lambda *_: None, FIELD).fetch(store(server, rest))
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def log_in(tmp_path: Path, server: Registry, login: str = LOGIN) -> None:
    (tmp_path / "docker").mkdir(exist_ok=True)
    write_logins(tmp_path, {server.host: login})


def write_logins(tmp_path: Path, logins: dict[str, str]) -> None:
    content = {"auths": {key: {"auth": login} for key, login in logins.items()}}
    (tmp_path / "docker").mkdir(exist_ok=True)
    (tmp_path / "docker" / "config.json").write_text(json.dumps(content))


def archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("text", "url", "version", "file"),
    [
        ("oci://ghcr.io/me/signs:v1", "https://ghcr.io/v2/me/signs", "v1", ""),
        ("oci://docker.io/signs", "https://registry-1.docker.io/v2/library/signs", "latest", ""),
        (f"oci://h:5000/a/b:t@sha256:{'a' * 64}", "https://h:5000/v2/a/b", f"sha256:{'a' * 64}", ""),
        ("oci://h/a:v1#yolo26n.pt", "https://h/v2/a", "v1", "yolo26n.pt"),
    ],
)
def test_reference_has_the_parts_of_the_uri(text: str, url: str, version: str, file: str) -> None:
    found = reference(uris.parse(text, uris.DATASET_SCHEMES))
    assert (found.url, found.version, found.file) == (url, version, file)


@pytest.mark.parametrize(
    "text", ["oci://h", "oci://h/A", "oci://h/a/../b", "oci://h/a:", "oci://u:p@h/a", "oci://h/a#"]
)
def test_uri_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must look like oci://REGISTRY/REPOSITORY:TAG"):
        uris.parse(text, uris.DATASET_SCHEMES)


@pytest.mark.parametrize("challenge", ["", "Basic", "Bearer"])
def test_artifact_is_fetched_with_the_login_that_the_registry_asks_for(
    server: Registry, tmp_path: Path, challenge: str
) -> None:
    server.challenge, server.login = challenge, LOGIN if challenge else ""
    if challenge:
        log_in(tmp_path, server)
    server.push("v1", FILES)
    assert fetch(server, "me/signs:v1", tmp_path / "cache") == FILES
    kinds = {kind for path, kind in server.seen if "/blobs/" in path}
    assert kinds == {challenge}
    before = len(server.seen)
    assert fetch(server, "me/signs:v1", tmp_path / "cache") == FILES
    assert not [path for path, _ in server.seen[before:] if "/blobs/" in path]


def test_expired_token_is_replaced_within_a_download(server: Registry, tmp_path: Path) -> None:
    server.login, server.requests_per_token = LOGIN, 2
    log_in(tmp_path, server)
    files = {f"{number}.txt": bytes([number]) * 1000 for number in range(9)}
    server.push("v1", files)
    assert fetch(server, "signs:v1", tmp_path / "cache") == files
    assert len([path for path, _ in server.seen if path.startswith("/token")]) > 1


def test_interrupted_download_continues_at_its_position(server: Registry, tmp_path: Path) -> None:
    server.push("v1", FILES)
    server.cut_first = 10
    assert fetch(server, "signs:v1", tmp_path / "cache") == FILES


@pytest.mark.parametrize("name", ["signs.tar.gz", "signs"])
def test_pushed_folder_or_archive_is_unpacked(server: Registry, tmp_path: Path, name: str) -> None:
    server.push("v1", {name: archive(FILES)}, folders=(name,) if name == "signs" else ())
    dataset = Dataset.model_validate({"uri": f"oci://{server.host}/signs:v1"})
    folder = locate(dataset, cache=tmp_path / "cache", volumes=tmp_path, progress=lambda *_: None)
    assert (folder / "images" / "a.jpg").read_bytes() == FILES["images/a.jpg"]


def test_one_file_of_an_artifact_is_fetched_alone(
    server: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.push("v8.4.0", {"yolo26n.pt": b"n", "yolo26s.pt": b"s"})
    monkeypatch.setenv("YOLOJOB_WEIGHTS", f"oci://{server.host}/weights:v8.4.0")
    uri = mirror.address("v8.4.0", "yolo26s.pt", "YOLOJOB_WEIGHTS", "0" * 64)
    assert str(uri) == f"oci://{server.host}/weights:v8.4.0#yolo26s.pt"
    assert fetch(server, "weights:v8.4.0#yolo26s.pt", tmp_path / "cache") == {"yolo26s.pt": b"s"}
    assert digest_of(b"n") not in str(server.seen)
    with pytest.raises(BadInput, match=r"has no file other.pt, but yolo26n.pt, yolo26s.pt"):
        store(server, "weights:v8.4.0#other.pt").files()


def test_artifact_is_fetched_by_its_digest_and_no_other(server: Registry, tmp_path: Path) -> None:
    digest = server.push("v1", FILES)
    assert fetch(server, f"signs:v1@{digest}", tmp_path / "cache") == FILES
    other = server.push("v2", {"b.txt": b"b"})
    server.manifests[digest] = server.manifests[other]
    with pytest.raises(BadInput, match=f"sent another manifest than {digest}"):
        store(server, f"signs@{digest}").files()


def test_blob_with_another_content_is_refused(server: Registry, tmp_path: Path) -> None:
    server.push("v1", FILES)
    server.blobs[digest_of(FILES["data.yaml"])] = b"names: [b]"
    with pytest.raises(BadInput, match=r"signs:v1: data.yaml: has the SHA-256 .*, not "):
        fetch(server, "signs:v1", tmp_path / "cache")


def test_error_says_what_to_do(server: Registry, tmp_path: Path) -> None:
    server.push("v1", FILES)
    with pytest.raises(BadInput, match=r"spec.model.weights.uri: oci://.*/signs:v2: does not exist") as missing:
        store(server, "signs:v2").files()
    assert missing.value.reason == Reason.STORAGE_NOT_FOUND
    server.login = LOGIN
    for login in ("", base64.b64encode(b"user:wrong").decode()):
        if login:
            log_in(tmp_path, server, login)
        with pytest.raises(BadInput, match=r"access denied.*check the login for localhost:.*DOCKER_CONFIG") as denied:
            store(server, "signs:v1").files()
        assert denied.value.reason == Reason.STORAGE_DENIED
    (tmp_path / "docker" / "config.json").write_text("[")
    with pytest.raises(BadInput, match=r"config.json is not a file of logins in Docker's format"):
        store(server, "signs:v1").files()


@pytest.mark.parametrize(
    ("realm", "message"),
    [
        ("http://localhost:1/token", "which is not an address at https"),
        ("https://169.254.169.254/token", "169.254.169.254, which is not a public address"),
        ("file:///etc/passwd", "which is not an address at https"),
        ("https://user:password@localhost/token", "which is not an address at https"),
    ],
)
def test_login_goes_to_no_address_that_the_registry_may_not_name(
    server: Registry, tmp_path: Path, realm: str, message: str
) -> None:
    server.push("v1", FILES)
    server.login, server.realm = LOGIN, realm
    log_in(tmp_path, server)
    with pytest.raises(BadInput, match=message) as refused:
        store(server, "signs:v1").files()
    assert refused.value.reason == Reason.STORAGE_UNTRUSTED


def test_blob_at_an_address_that_is_not_public_is_refused(server: Registry, tmp_path: Path) -> None:
    server.push("v1", FILES)
    server.redirect = "https://169.254.169.254/latest"
    with pytest.raises(BadInput, match="which is not a public address"):
        fetch(server, "signs:v1", tmp_path / "cache")


def test_registry_that_does_not_answer_is_retried_and_then_unavailable(server: Registry) -> None:
    server.login, server.realm = LOGIN, "https://localhost:1/token"
    server.push("v1", FILES)
    with pytest.raises(Unavailable, match="signs:v1"):
        store(server, "signs:v1").files()


def layer(**changes: Any) -> bytes:
    manifest = manifest_of({"a.txt": b"a"})
    manifest["layers"][0] |= changes
    return json.dumps(manifest).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[", "its manifest is not a JSON object"),
        (b"[" * 100_000, "its manifest is not a JSON object"),
        (b"[]", "its manifest is not a JSON object"),
        (b" " * (5 << 20), "has a manifest or a token of more than 4 MiB"),
        (b"{}", "has no files; write it with `oras push`"),
        (b'{"layers": [1]}', "has no files"),
        (b'{"manifests": []}', "is an index of several artifacts"),
        (layer(annotations={}), "as an image of a container"),
        (layer(annotations=5), "as an image of a container"),
        (layer(annotations={"org.opencontainers.image.title": "../a"}), "is not a path inside of the artifact"),
        (layer(annotations={"org.opencontainers.image.title": "/etc/a"}), "is not a path inside of the artifact"),
        (layer(annotations={"org.opencontainers.image.title": ""}), "is not a path inside of the artifact"),
        (layer(annotations={"org.opencontainers.image.title": "."}), "is not a path inside of the artifact"),
        (layer(annotations={"org.opencontainers.image.title": "./a"}), "is not a path inside of the artifact"),
        (layer(annotations={"org.opencontainers.image.title": "a//b"}), "is not a path inside of the artifact"),
        (json.dumps(manifest_of({"a": b"", "a/b": b"x"})).encode(), "a file with the name of a folder"),
        (json.dumps(manifest_of({"a": b"", "a.part": b"x"})).encode(), "ends with .part"),
        (layer(digest="sha256:../../x"), "a.txt: has no SHA-256 digest or no size"),
        (layer(digest=5), "a.txt: has no SHA-256 digest or no size"),
        (layer(size=-1), "a.txt: has no SHA-256 digest or no size"),
        (layer(size="many"), "a.txt: has no SHA-256 digest or no size"),
        (json.dumps(manifest_of({"a": b"", "b": b"x"}, folders=("a",))).encode(), "has the folder a and other files"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_artifact_of_another_form_is_refused(server: Registry, content: bytes, message: str) -> None:
    server.manifests["v1"] = content
    with pytest.raises(BadInput, match=f"{FIELD}: oci://{server.host}/signs:v1: .*{message}"):
        store(server, "signs:v1").files()


def test_larger_file_than_the_manifest_states_is_refused_and_not_kept(server: Registry, tmp_path: Path) -> None:
    content = b"a" * (32 << 20)
    server.manifests["v1"] = layer(digest=digest_of(b"a"), size=1)
    server.blobs[digest_of(b"a")] = content
    with pytest.raises(BadInput, match=r"signs:v1: a.txt: is longer than the 1 bytes that the server has stated"):
        fetch(server, "signs:v1", tmp_path / "cache")
    assert sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file()) == 0
    server.blobs[digest_of(b"a")] = b"a"
    assert fetch(server, "signs:v1", tmp_path / "cache") == {"a.txt": b"a"}


def test_artifact_with_a_missing_blob_is_refused(server: Registry, tmp_path: Path) -> None:
    files = {f"{number:02}.txt": bytes([number]) for number in range(20)}
    server.push("v1", files)
    del server.blobs[digest_of(files["00.txt"])]
    with pytest.raises(BadInput, match="does not exist"):
        fetch(server, "signs:v1", tmp_path / "cache")


def test_server_behind_a_redirect_gets_no_login(server: Registry, tmp_path: Path) -> None:
    """It asks for one, and names the address of its tokens."""
    server.login, server.challenge = LOGIN, "Basic"
    log_in(tmp_path, server)
    server.push("v1", FILES)
    (tmp_path / "other").mkdir()
    with registry(tmp_path / "other") as other:
        both = (tmp_path / "ca.pem").read_text() + (tmp_path / "other" / "ca.pem").read_text()
        (tmp_path / "ca.pem").write_text(both)
        other.login = LOGIN
        other.blobs = server.blobs
        server.redirect = f"https://{other.host}/v2/signs/blobs/{digest_of(FILES['data.yaml'])}"
        with pytest.raises(BadInput, match="access denied"):
            fetch(server, "signs:v1", tmp_path / "cache")
        assert other.seen
        assert {kind for _, kind in other.seen} == {""}
        assert not [path for path, _ in other.seen if path.startswith("/token")]


def test_host_that_is_not_public_can_be_allowed(
    server: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.push("v1", FILES)
    server.redirect = "https://127.0.0.1:1/x"
    with pytest.raises(BadInput, match=r"127.0.0.1, which is not a public address; .*YOLOJOB_REDIRECT_HOSTS"):
        fetch(server, "signs:v1", tmp_path / "cache")
    monkeypatch.setenv("YOLOJOB_REDIRECT_HOSTS", "other, 127.0.0.1")
    with pytest.raises(Unavailable):
        fetch(server, "signs:v1", tmp_path / "cache")


def test_login_in_netrc_does_not_disturb(server: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine localhost login other password other\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server.login = LOGIN
    log_in(tmp_path, server)
    server.push("v1", FILES)
    assert fetch(server, "signs:v1", tmp_path / "cache") == FILES


@pytest.mark.parametrize(
    "key", ["{host}/team/signs", "{host}/team", "https://{host}/", "{HOST}", "*:{port}", "https://{host}/team"]
)
def test_login_is_found_as_by_the_kubelet(server: Registry, tmp_path: Path, key: str) -> None:
    wrong = base64.b64encode(b"a:b").decode()
    name = key.format(host=server.host, HOST=server.host.upper(), port=server.port)
    write_logins(tmp_path, {"ghcr.io": wrong, f"{server.host}/other": wrong, f"a.{server.host}": wrong, name: LOGIN})
    server.login = LOGIN
    server.push("v1", FILES)
    assert fetch(server, "team/signs:v1", tmp_path / "cache") == FILES
