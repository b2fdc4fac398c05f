"""Reads and writes `s3://`, `gs://` and `https://` through fsspec, and classifies its many errors.

There are two kinds of errors: the object does not exist or access is denied (`BadInput`: the user must act), and the
server does not answer at the moment (`Unavailable`: the request is retried with growing pauses).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

from yolojob.api.reasons import Reason
from yolojob_trainer.data.https_client import (
    CONNECT_TIMEOUT_SECONDS,
    READ_TIMEOUT_SECONDS,
    ForbiddenTarget,
    client_without_netrc,
    https_client,
)
from yolojob_trainer.errors import BadInput, TrainerError
from yolojob_trainer.system.retry import Backoff

T = TypeVar("T")

RETRY_TIMEOUT_SECONDS = 120.0
"""Time for which a request is retried while the server does not answer."""
STREAM_BLOCK_BYTES = 1 << 20


_OPTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "s3": lambda: {
        # This module retries; s3fs retries in addition, and only briefly.
        "config_kwargs": {
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "read_timeout": READ_TIMEOUT_SECONDS,
            "retries": {"max_attempts": 1},
        },
        "default_cache_type": "none",
        "use_listings_cache": False,
    },
    "gs": lambda: {"use_listings_cache": False, "requests_timeout": READ_TIMEOUT_SECONDS},
    "https": lambda: {"get_client": https_client, "skip_instance_cache": True},
}
REGISTRY_OPTIONS = {"get_client": client_without_netrc, "skip_instance_cache": True}
"""Of the requests to an OCI registry, which have a login in a header."""

_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the role of the pod's service account",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or the identity of the pod's service account",
    "https": "the address: it may need a signature",
}
_DENIED = (
    "AccessDenied",
    "AllAccessDisabled",
    "ExpiredToken",
    "Forbidden",
    "InvalidAccessKeyId",
    "InvalidToken",
    "NoCredentials",
    "PartialCredentials",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
    "DefaultCredentialsError",
    "RefreshError",
    "Unauthorized",
)
_MISSING = ("NoSuchBucket", "NoSuchKey", "NotFound", "bucket does not exist")


class Unavailable(TrainerError):
    """The server does not answer, or not correctly; a retry may succeed."""

    def __init__(self, message: str) -> None:
        super().__init__(Reason.STORAGE_UNAVAILABLE, message)


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteFile:
    path: str
    """Path below the root; empty if the root itself is a file."""
    size: int | None
    """Bytes; None if the server does not report it."""
    tag: str
    """Changes with the content: an etag, a generation or a date."""
    sha256: str = ""
    """SHA-256 that the content must have, in hexadecimal; empty if none is known."""
    is_archive: bool = False
    """Whether it is unpacked, if it is the only file."""


class ObjectStore:
    """A folder or a file in an object store, or a file at an https address."""

    def __init__(
        self,
        uri: str,
        field: str,
        retry_timeout: float = RETRY_TIMEOUT_SECONDS,
        options: dict[str, Any] | None = None,
    ) -> None:
        """
        Args:
            uri: s3://BUCKET/PATH, gs://BUCKET/PATH or https://HOST/PATH, the latter perhaps with #sha256=HEX.
            field: the field of the specification that holds the URI, for messages.
            retry_timeout: seconds for which a request is retried.
            options: of fsspec's file system instead of the scheme's own.
        """
        import fsspec  # takes half a second with its dependencies, which a run on local files does not need

        uri, self._sha256 = _without_digest(uri)
        self.uri = uri
        self.scheme = uri.partition("://")[0]
        self.shown = re.sub(r"\?.*", "?…", uri)
        """The URI for logs, without the query, which may hold a signature."""
        self._field = field
        self.retry_timeout = retry_timeout
        self._fs, root = self._retry(lambda: fsspec.url_to_fs(uri, **(options or _OPTIONS[self.scheme]())))
        self._root = root.rstrip("/")

    @property
    def credentials(self) -> str:
        """What to check when access is denied."""
        return _CREDENTIALS[self.scheme]

    @property
    def where(self) -> str:
        """Field and URI, for messages."""
        return f"{self._field}: {self.shown}"

    def files(self) -> list[RemoteFile]:
        """Return all files below the root, or the root itself.

        Raises:
            BadInput: there are no files, or access is denied.
            Unavailable: the server does not answer.
        """
        if self.scheme == "https":
            info = self._retry(lambda: self._fs.info(self._root))
            files = [RemoteFile(path="", sha256=self._sha256, is_archive=True, **_size_and_tag(info))]
        else:
            files = sorted(self._objects(), key=lambda file: file.path) or self._single_object()
        if not files:
            raise BadInput(Reason.STORAGE_NOT_FOUND, f"{self.where}: there are no files")
        return files

    def _objects(self) -> Iterator[RemoteFile]:
        """Yield the objects below the root, page by page.

        fsspec's own listing keeps 1.5 kB for each object, and repeats all requests when one fails.
        """
        bucket, key, _ = self._fs.split_path(self._root)
        prefix = f"{key}/" if key else ""
        list_page, token = _LIST_PAGE[self.scheme], ""
        while True:
            page = partial(list_page, self._fs, bucket, prefix, token)
            objects, token = self._retry(page)
            for name, info in objects:
                if not name.endswith("/"):  # an empty object, by which some tools mark a folder
                    yield RemoteFile(path=name.removeprefix(prefix), **_size_and_tag(info))
            if not token:
                return

    def _single_object(self) -> list[RemoteFile]:
        """Return the root if it is an object."""
        try:
            info = self._retry(lambda: self._fs.info(self._root))
        except BadInput as error:
            if error.reason == Reason.STORAGE_NOT_FOUND:
                return []
            raise
        return [RemoteFile(path="", is_archive=True, **_size_and_tag(info))] if info["type"] == "file" else []

    def identity(self, files: list[RemoteFile]) -> str:
        """Return a text that, with the sizes and tags of its files, identifies the content.

        The query is left out if all files have tags, because signatures in it change every hour.
        """
        if self._sha256:
            return self._sha256
        address = f"{self.scheme}://{self._root}"
        return address.partition("?")[0] if all(file.tag for file in files) else address

    def read(self, path: str, start: int, end: int | None) -> bytes:
        """Return bytes `start` to `end` of a file; None reads to its end.

        Raises:
            BadInput: it does not exist, or access is denied.
            Unavailable: the server does not answer.
        """
        return self._retry(lambda: self._read(path, start, end))

    def _read(self, path: str, start: int, end: int | None) -> bytes:
        # Without a range where none is needed: an empty object has no range that can be satisfied.
        part = {"start": start, "end": end} if start or end is not None else {}
        data: bytes = self._fs.cat_file(self._name(path), **part)
        if end is not None and len(data) != end - start:
            raise Unavailable(f"{self.shown}: {path or 'the file'}: received {len(data)} bytes, expected {end - start}")
        return data

    def stream(self, path: str, start: int) -> tuple[int, Iterator[bytes]]:
        """Read a file as a stream, without retries, also from servers that do not support ranges.

        Args:
            path: of the file.
            start: offset in bytes.

        Returns:
            (actual offset: `start`, or 0 without support for ranges; blocks of bytes).

        Raises:
            BadInput: it does not exist, or access is denied.
            Unavailable: no answer, or the connection broke; also raised by the iterator.
        """

        def blocks() -> Iterator[bytes]:
            try:
                with file:
                    while block := file.read(STREAM_BLOCK_BYTES):
                        yield block
            except Exception as error:
                raise self._translated(error) from error

        try:
            # With a compressed transfer, offsets would be those of the compressed data.
            headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
            file = self._open(path, headers)
        except Exception as error:
            raise self._translated(error) from error
        return (start if file.r.status == HTTPStatus.PARTIAL_CONTENT else 0), blocks()

    def _open(self, path: str, headers: dict[str, str]) -> Any:
        return self._open_url(self._name(path), headers)

    def _open_url(self, url: str, headers: dict[str, str]) -> Any:
        return self._fs.open(url, "rb", block_size=0, headers=headers)

    def write(self, source: Path, path: str) -> None:
        """Upload a local file, atomically.

        Raises:
            BadInput: access is denied.
            Unavailable: the server does not answer.
        """
        self._retry(lambda: self._fs.put_file(str(source), self._name(path)))

    def write_bytes(self, data: bytes, path: str) -> None:
        """Upload a small file, atomically.

        Raises:
            BadInput: access is denied.
            Unavailable: the server does not answer.
        """
        self._retry(lambda: self._fs.pipe_file(self._name(path), data))

    def remove(self, path: str) -> None:
        """Remove a file, if it exists."""
        try:
            self._retry(lambda: self._fs.rm_file(self._name(path)))
        except BadInput as error:
            if error.reason != Reason.STORAGE_NOT_FOUND:
                raise

    def _name(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def _retry(self, call: Callable[[], T]) -> T:
        """Return the result of `call`, which is retried while the server is unavailable."""
        backoff = Backoff(self.retry_timeout)
        while True:
            try:
                return call()
            except Exception as error:
                failure = self._translated(error)
                if not isinstance(failure, Unavailable) or not backoff.wait(failure):
                    raise failure from error

    def _translated(self, error: Exception) -> TrainerError:
        """Return the error for the user that corresponds to an exception of fsspec."""
        if isinstance(error, TrainerError):
            return error
        status, text = _status_and_text(error)
        where = self.where
        # fsspec's HTTP raises FileNotFoundError for any failure, and a server's message may say anything: over https
        # only the status counts.
        by_text = self.scheme != "https"
        denied = isinstance(error, PermissionError) or any(word in text for word in _DENIED)
        if status in (401, 403) or (by_text and denied):
            denial = f"access denied ({_brief(error)}); check {self.credentials}"
            return BadInput(Reason.STORAGE_DENIED, f"{where}: {denial}")
        if redirect := next((cause for cause in causes(error) if isinstance(cause, ForbiddenTarget)), None):
            return BadInput(Reason.STORAGE_UNTRUSTED, f"{where}: {redirect}")
        if "CERTIFICATE_VERIFY_FAILED" in text:
            hint = "for a private certificate authority, set SSL_CERT_FILE to its certificate"
            return BadInput(Reason.STORAGE_UNTRUSTED, f"{where}: its certificate cannot be verified; {hint}")
        missing = isinstance(error, FileNotFoundError) or any(word in text for word in _MISSING)
        if status in (404, 410) or (by_text and missing):
            return BadInput(Reason.STORAGE_NOT_FOUND, f"{where}: does not exist ({_brief(error)})")
        if isinstance(error, ImportError):
            return BadInput(Reason.STORAGE_UNSUPPORTED, f"{where}: {error}")
        return Unavailable(f"{where}: {_brief(error)}")


_Page = tuple[list[tuple[str, dict[str, Any]]], str]
"""(name and description of each object, token of the next page or an empty string)."""


def _list_s3_page(fs: Any, bucket: str, prefix: str, token: str) -> _Page:
    """https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html"""
    options = {"ContinuationToken": token} if token else {}
    page = fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **options)
    objects = [(entry["Key"], {**entry, "size": entry["Size"]}) for entry in page.get("Contents", [])]
    if not page.get("IsTruncated"):
        return objects, ""
    if not page.get("NextContinuationToken"):  # a server that does not know this version of the request
        raise OSError("the listing is incomplete: the server has sent no continuation token")
    return objects, page["NextContinuationToken"]


def _list_gs_page(fs: Any, bucket: str, prefix: str, token: str) -> _Page:
    """https://cloud.google.com/storage/docs/json_api/v1/objects/list"""
    page = fs.call("GET", "b/{}/o", bucket, prefix=prefix, pageToken=token or None, json_out=True)
    objects = [(entry["name"], {**entry, "size": int(entry["size"])}) for entry in page.get("items", [])]
    return objects, page.get("nextPageToken") or ""


_LIST_PAGE: dict[str, Callable[[Any, str, str, str], _Page]] = {"s3": _list_s3_page, "gs": _list_gs_page}


def _without_digest(uri: str) -> tuple[str, str]:
    """Split #sha256=HEX from the end of an https URI."""
    match = re.fullmatch(r"(https://[^#]*)#sha256=([0-9a-f]{64})", uri)
    return (match[1], match[2]) if match else (uri, "")


def _size_and_tag(info: dict[str, Any]) -> dict[str, Any]:
    names = ("ETag", "etag", "md5Hash", "crc32c", "generation", "LastModified", "updated")
    tag = next((str(info[n]) for n in names if info.get(n)), "")
    return {"size": info.get("size"), "tag": tag.strip('"')}


def _status_and_text(error: BaseException) -> tuple[int | None, str]:
    """Return (HTTP status, names and codes) of an error and its causes: the causes are often more specific."""
    status, text = None, []
    for cause in causes(error):
        text.append(type(cause).__name__)
        if isinstance(cause, asyncio.TimeoutError):
            status = status or 504
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            text.append(str(response.get("Error", {}).get("Code", "")))
            status = status or response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        for attribute in ("status", "code"):
            value = getattr(cause, attribute, None)
            if status is None and str(value).isdigit():
                status = int(str(value))
        text.append(str(cause)[:300])
    return status, " ".join(text)


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, its cause, the cause of that, and so on."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _brief(error: BaseException) -> str:
    """Return the message of an error in one line, without queries of URIs."""
    while isinstance(error, FileNotFoundError) and error.__cause__:
        error = error.__cause__
    return re.sub(r"\?\S*", "?…", " ".join(str(error).split()))[:300] or type(error).__name__
