"""Reads the files of an artifact in an OCI registry, such as `oras push` writes.

The requests are those of https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md, and the tokens those
of https://distribution.github.io/distribution/spec/auth/token/.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlencode, urlsplit

from yolojob.api.reasons import Reason
from yolojob.api.uri import Uri
from yolojob_trainer.data import shards
from yolojob_trainer.data.https_client import check_target
from yolojob_trainer.data.object_store import (
    REGISTRY_OPTIONS,
    RETRY_TIMEOUT_SECONDS,
    STREAM_BLOCK_BYTES,
    ObjectStore,
    RemoteFile,
    causes,
)
from yolojob_trainer.data.untrusted import has_control_characters, integer, is_relative_path
from yolojob_trainer.errors import BadInput

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OTHERS = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
"""Types of what else may have the name of an artifact. Without them a registry would say that it does not exist."""
ACCEPTED = ", ".join((MANIFEST, *OTHERS))
MAX_MANIFEST_BYTES = 4 << 20
"""The size that registries must accept, by the specification."""
TITLE = "org.opencontainers.image.title"
"""Annotation with the name of a layer's file."""
UNPACK = "io.deis.oras.content.unpack"
"""Annotation with which `oras push` marks a folder, as an archive."""
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
DOCKER_HOST = "registry-1.docker.io"
"""Of the API of docker.io."""
DOCKER_LOGIN = "https://index.docker.io/v1/"
"""Key of docker.io in a file of logins."""
PARAMETER = re.compile(r'(\w+)="([^"]*)"')
"""Of a challenge in a response, such as realm="https://auth.example.com/token"."""
LISTED_FILES = 5
"""Files that a message lists."""
Problem = Callable[[str], BadInput]
"""Makes an error of a message."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """An artifact, and perhaps one file of it."""

    host: str
    repository: str
    version: str
    """Tag or digest."""
    file: str
    """Name of the only file that is wanted; empty: all."""

    @property
    def url(self) -> str:
        """Address of the repository's API."""
        return f"https://{DOCKER_HOST if self.host == 'docker.io' else self.host}/v2/{self.repository}"


def reference(uri: Uri) -> Reference:
    """Return the artifact that a URI names: oci://HOST/REPOSITORY:TAG@DIGEST#FILE. A digest prevails over a tag."""
    path, _, file = uri.path.partition("#")
    name, _, digest = path.partition("@")
    repository, _, tag = name.partition(":")
    if uri.location == "docker.io" and "/" not in repository:
        repository = f"library/{repository}"
    return Reference(host=uri.location, repository=repository, version=digest or tag or "latest", file=file)


class OciStore(ObjectStore):
    """The files of an artifact in an OCI registry."""

    def __init__(self, uri: Uri, field: str, retry_timeout: float = RETRY_TIMEOUT_SECONDS) -> None:
        """
        Args:
            uri: oci://HOST/REPOSITORY, see `reference`.
            field: the field of the specification that holds the URI, for messages.
            retry_timeout: seconds for which a request is retried.
        """
        self.reference = reference(uri)
        super().__init__(self.reference.url, field, retry_timeout, REGISTRY_OPTIONS)
        self.shown = str(uri)
        self._authorization: dict[str, str] = {}
        self._digests: dict[str, str] = {}
        """Digests of the files by their names."""

    @property
    def credentials(self) -> str:
        return (
            f"the login for {self.reference.host} in Docker's config.json. DOCKER_CONFIG is the folder of that file, "
            "or REGISTRY_AUTH_FILE its path; helpers for credentials are not used"
        )

    def files(self) -> list[RemoteFile]:
        files = _files(self._retry(self._manifest), self._problem)
        if self.reference.file:
            chosen = [file for file in files if file.path == self.reference.file]
            if not chosen:
                listed = ", ".join(file.path for file in files[:LISTED_FILES])
                raise self._problem(f"has no file {self.reference.file}, but {listed}", Reason.STORAGE_NOT_FOUND)
            files = chosen
        self._digests = {file.path: file.tag for file in files}
        return files

    def _open(self, path: str, headers: dict[str, str]) -> Any:
        return self._open_url(f"{self.reference.url}/blobs/{self._digests[path]}", headers)

    def _open_url(self, url: str, headers: dict[str, str]) -> Any:
        """Open an address of the registry; log in when the registry asks for it, also when a token has expired."""
        try:
            return super()._open_url(url, headers | self._authorization)
        except Exception as error:
            challenges = _challenges(error, self.reference.url)
            if not challenges:
                raise
        # Not inside of the handler: an error here must not have the refusal as its context.
        self._authorization = {"Authorization": self._log_in(challenges)}
        return super()._open_url(url, headers | self._authorization)

    def _manifest(self) -> dict[str, Any]:
        version = self.reference.version
        with self._open_url(f"{self.reference.url}/manifests/{version}", {"Accept": ACCEPTED}) as file:
            content = self._read_document(file)
        if ":" in version and f"sha256:{hashlib.sha256(content).hexdigest()}" != version:
            raise self._problem(f"the registry has sent another manifest than {version}")
        try:
            manifest = json.loads(content)
        except (ValueError, RecursionError):
            manifest = None
        if not isinstance(manifest, dict):
            raise self._problem("its manifest is not a JSON object")
        return manifest

    def _log_in(self, challenges: dict[str, str]) -> str:
        """Return the value of the header Authorization for the challenges of a registry, by their schemes."""
        login = _login(f"{self.reference.host}/{self.reference.repository}", self._problem)
        parameters = dict(PARAMETER.findall(challenges.get("bearer", "")))
        if "realm" not in parameters:
            if "basic" in challenges and login:
                return f"Basic {login}"
            raise BadInput(Reason.STORAGE_DENIED, f"{self.where}: access denied; check {self.credentials}")
        realm = parameters["realm"]
        check_target(urlsplit(self.reference.url).hostname or "", realm)  # the registry chooses it
        query = {"scope": f"repository:{self.reference.repository}:pull"}
        if "service" in parameters:
            query["service"] = parameters["service"]
        address = f"{realm}{'&' if urlsplit(realm).query else '?'}{urlencode(query)}"
        with super()._open_url(address, {"Authorization": f"Basic {login}"} if login else {}) as file:
            content = self._read_document(file)
        try:
            answer = json.loads(content)
            token = answer.get("token") or answer["access_token"]
        except (ValueError, KeyError, AttributeError, RecursionError):
            token = None
        if not isinstance(token, str) or has_control_characters(token):
            raise self._problem(f"{urlsplit(realm).hostname} has sent no token")
        return f"Bearer {token}"

    def _read_document(self, file: Any) -> bytes:
        """Read a manifest or a token to its end; a single read returns what has arrived so far."""
        content = b""
        while block := file.read(STREAM_BLOCK_BYTES):
            content += block
            if len(content) > MAX_MANIFEST_BYTES:
                raise self._problem(f"has a manifest or a token of more than {MAX_MANIFEST_BYTES >> 20} MiB")
        return content

    def _problem(self, message: str, reason: Reason = Reason.INVALID_ARTIFACT) -> BadInput:
        return BadInput(reason, f"{self.where}: {message}")


def _files(manifest: dict[str, Any], problem: Problem) -> list[RemoteFile]:
    """Return the files of an artifact by its manifest."""
    if "manifests" in manifest:
        raise problem("is an index of several artifacts; name one of them by its digest")
    layers = manifest.get("layers")
    if not isinstance(layers, list) or not layers or not all(isinstance(layer, dict) for layer in layers):
        raise problem("has no files; write it with `oras push`")
    files = [_file(layer, problem) for layer in layers]
    names = [file.path for file in files]
    taken = {*names, *(str(parent) for name in set(names) for parent in PurePosixPath(name).parents)}
    if len(taken) < len(names) + len({str(p) for name in names for p in PurePosixPath(name).parents}):
        raise problem("has two files of one name, or a file with the name of a folder")
    if any(f"{name}.part" in taken for name in names):
        raise problem("has a file whose name ends with .part, which downloads use")
    folders = [file.path for file in files if file.is_archive and not file.path.lower().endswith(ARCHIVE_SUFFIXES)]
    if folders and len(files) > 1:
        raise problem(f"has the folder {folders[0]} and other files; push one folder, or files only")
    return files


def _file(layer: dict[str, Any], problem: Problem) -> RemoteFile:
    annotations = layer.get("annotations") or {}
    title = annotations.get(TITLE) if isinstance(annotations, dict) else None
    digest, size = layer.get("digest"), integer(layer.get("size"))
    if not isinstance(title, str):
        raise problem("has layers without names, as an image of a container; write an artifact with `oras push`")
    if title in ("", ".") or not is_relative_path(title) or str(PurePosixPath(title)) != title:
        raise problem(f"has a file {title[:100]!r}, which is not a path inside of the artifact")
    if not isinstance(digest, str) or not re.fullmatch("sha256:[0-9a-f]{64}", digest) or size is None or size < 0:
        raise problem(f"{title}: has no SHA-256 digest or no size")
    is_folder = annotations.get(UNPACK) == "true"
    return RemoteFile(
        path=title,
        size=size,
        tag=digest,
        sha256=digest.removeprefix("sha256:"),
        is_archive=is_folder or (title.lower().endswith(ARCHIVE_SUFFIXES) and not shards.NAME.fullmatch(title)),
    )


def _challenges(error: BaseException, url: str) -> dict[str, str]:
    """Return the challenges of a registry that has refused a request, by their schemes in lower case.

    Those of another server, to which the registry has redirected the request, do not count: it must not get the login.
    """
    for cause in causes(error):
        request, headers = getattr(cause, "request_info", None), getattr(cause, "headers", None)
        if getattr(cause, "status", None) != HTTPStatus.UNAUTHORIZED or request is None or headers is None:
            continue
        if request.real_url.origin() != type(request.real_url)(url).origin():
            return {}
        values = headers.getall("WWW-Authenticate", [])
        return {value.partition(" ")[0].lower(): value for value in values}
    return {}


def _login(name: str, problem: Problem) -> str | None:
    """Return the login for a repository in Docker's format, base64 of user:password; None without one.

    As for the kubelet, a key is a host or a part of the repository's path, and may have wildcards; the longest one
    counts.
    """
    for path in _login_files():
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            logins = {_normal(key): value.get("auth") for key, value in (content.get("auths") or {}).items()}
            for key in sorted(logins, key=len, reverse=True):
                if logins[key] and _covers(key, name):
                    base64.b64decode(logins[key], validate=True)
                    return str(logins[key])
        except FileNotFoundError:
            continue
        except (OSError, ValueError, AttributeError, TypeError, RecursionError, binascii.Error):
            raise problem(f"{path} is not a file of logins in Docker's format") from None
    return None


def _normal(key: str) -> str:
    """Return the key of a login without a scheme, and with the one name of docker.io."""
    if key == DOCKER_LOGIN:
        return "docker.io"
    return key.partition("://")[2].rstrip("/") if "://" in key else key.rstrip("/")


def _covers(key: str, name: str) -> bool:
    """Return whether the key of a login is for a repository. A wildcard is for one part of the host."""
    (host, *path), (its_host, *its_path) = key.split("/"), name.split("/")
    parts, its_parts = host.lower().split("."), its_host.lower().split(".")
    same_host = len(parts) == len(its_parts) and all(map(fnmatchcase, its_parts, parts))
    return same_host and its_path[: len(path)] == path


def _login_files() -> Iterator[Path]:
    if file := os.environ.get("REGISTRY_AUTH_FILE"):
        yield Path(file)
    yield Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
