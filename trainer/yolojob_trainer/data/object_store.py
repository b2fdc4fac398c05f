"""Files elsewhere: `s3://`, `gs://` and `https://` through fsspec, with its many errors told apart.

Three things can be wrong, and each wants another answer: what was asked for is not there, or we may not have it (the user
must act: `BadInput`); or the other side does not answer for the moment (`Unavailable`: tried again, with growing pauses).
"""

from __future__ import annotations

import asyncio
import random
import re
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

from yolojob.api.reasons import Reason
from yolojob_trainer.errors import BadInput, TrainerError

T = TypeVar("T")

PATIENCE = 120.0
"""Seconds for which one request is tried again while the other side does not answer."""
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 10.0
CONNECT_SECONDS, SILENCE_SECONDS = 10, 30
STREAM_BLOCK = 1 << 20


async def _https_client(**_: Any) -> Any:
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
    # The environment says which certificates (SSL_CERT_FILE) and which proxy are to be used.
    connector = aiohttp.TCPConnector(ssl=ssl.create_default_context())
    return aiohttp.ClientSession(timeout=timeout, connector=connector, trust_env=True)


_OPTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "s3": lambda: {
        # The repeating is ours; s3fs' own comes on top and is short.
        "config_kwargs": {
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": SILENCE_SECONDS,
            "retries": {"max_attempts": 1},
        },
        "default_cache_type": "none",
        "use_listings_cache": False,
    },
    "gs": lambda: {"use_listings_cache": False, "requests_timeout": SILENCE_SECONDS},
    "https": lambda: {"get_client": _https_client, "skip_instance_cache": True},
}

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
    """The other side does not answer, or not as it should; later it may."""

    def __init__(self, message: str) -> None:
        super().__init__(Reason.STORAGE_UNAVAILABLE, message)


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    path: str
    """Below the remote's root; empty for the root itself where that is a file."""
    size: int | None
    """Bytes; none where the server does not say."""
    tag: str
    """Another one when the content is another: an etag, a generation, a date."""


class Remote:
    """A folder or a file in an object store, or at an address."""

    def __init__(self, uri: str, field: str, patience: float = PATIENCE) -> None:
        """
        Args:
            uri: s3://BUCKET/PATH, gs://BUCKET/PATH or https://HOST/PATH.
            field: where the user wrote it, for messages.
            patience: seconds for which a request is repeated.
        """
        import fsspec  # with what it brings, half a second that a run on local files need not spend

        self.uri = uri
        self.scheme = uri.partition("://")[0]
        self.shown = re.sub(r"\?.*", "?…", uri)
        """The URI as it may stand in logs: what is behind the question mark may be a signature."""
        self._field = field
        self.patience = patience
        self._fs, root = self._tried(lambda: fsspec.url_to_fs(uri, **_OPTIONS[self.scheme]()))
        self._root = root.rstrip("/")

    def files(self) -> list[RemoteFile]:
        """All files below the root, or the root itself.

        Raises:
            BadInput: there is nothing, or we may not look.
            Unavailable: no answer.
        """
        if self.scheme == "https":
            found = [RemoteFile(path="", **_facts(self._tried(lambda: self._fs.info(self._root))))]
        else:
            listing = self._tried(lambda: self._fs.find(self._root, detail=True))
            found = [
                RemoteFile(path=name[len(self._root) :].lstrip("/"), **_facts(facts))
                for name, facts in sorted(listing.items())
                if facts["type"] == "file" and not name.endswith("/")
            ]
        if not found:
            raise BadInput(Reason.STORAGE_NOT_FOUND, f"{self._field}: {self.shown}: there are no files")
        return found

    def identity(self, files: list[RemoteFile]) -> str:
        """What makes this remote another one than others, beside its files' sizes and tags.

        What is behind the question mark is left out where the tags tell contents apart: signatures change by the hour.
        """
        address = f"{self.scheme}://{self._root}"
        return address.partition("?")[0] if all(file.tag for file in files) else address

    def read(self, path: str, start: int, end: int | None) -> bytes:
        """Bytes `start` to `end` of a file; fewer only where it ends.

        Raises:
            BadInput: it is not there, or we may not read it.
            Unavailable: no answer.
        """
        return self._tried(lambda: self._read(path, start, end))

    def _read(self, path: str, start: int, end: int | None) -> bytes:
        data: bytes = self._fs.cat_file(self._name(path), start=start, end=end)
        if end is not None and len(data) != end - start:
            raise Unavailable(f"{self.shown}: {path or 'the file'}: {len(data)} bytes came where {end - start} should")
        return data

    def stream(self, start: int) -> tuple[int, Iterator[bytes]]:
        """The root itself, for servers that may not know ranges: (where it really begins, blocks). Not repeated.

        Raises:
            BadInput: it is not there, or we may not read it.
            Unavailable: no answer, or the connection broke; also from the iterator.
        """

        def blocks() -> Iterator[bytes]:
            try:
                with file:
                    while block := file.read(STREAM_BLOCK):
                        yield block
            except Exception as error:
                raise self._translated(error) from error

        try:
            # Compressed on the way, positions would be those of something else.
            headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
            file = self._fs.open(self._root, "rb", block_size=0, headers=headers)
        except Exception as error:
            raise self._translated(error) from error
        return (start if file.r.status == HTTPStatus.PARTIAL_CONTENT else 0), blocks()

    def write(self, source: Path, path: str) -> None:
        """Put a local file there, whole or not at all.

        Raises:
            BadInput: we may not write there.
            Unavailable: no answer.
        """
        self._tried(lambda: self._fs.put_file(str(source), self._name(path)))

    def remove(self, path: str) -> None:
        """Remove a file; it may be gone already."""
        try:
            self._tried(lambda: self._fs.rm_file(self._name(path)))
        except BadInput as error:
            if error.reason != Reason.STORAGE_NOT_FOUND:
                raise

    def _name(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def _tried(self, call: Callable[[], T]) -> T:
        """`call`, again and again while the fault may pass."""
        deadline = time.monotonic() + self.patience
        pause = FIRST_PAUSE
        while True:
            try:
                return call()
            except Exception as error:
                failure = self._translated(error)
                if not isinstance(failure, Unavailable) or time.monotonic() + pause > deadline:
                    raise failure from error
            time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - so that workers do not come back in step
            pause = min(pause * 2, LONGEST_PAUSE)

    def _translated(self, error: Exception) -> TrainerError:
        """What went wrong, in our words."""
        if isinstance(error, TrainerError):
            return error
        status, words = _evidence(error)
        where = f"{self._field}: {self.shown}"
        if isinstance(error, PermissionError) or status in (401, 403) or any(w in words for w in _DENIED):
            why = _brief(error)
            return BadInput(
                Reason.STORAGE_DENIED, f"{where}: access denied ({why}); look at {_CREDENTIALS[self.scheme]}"
            )
        if "CERTIFICATE_VERIFY_FAILED" in words:
            hint = "set SSL_CERT_FILE to your own authority's, if it has one"
            return BadInput(Reason.STORAGE_UNTRUSTED, f"{where}: its certificate cannot be verified; {hint}")
        # fsspec's HTTP says "not found" to whatever has happened; then only the status counts.
        missing = isinstance(error, FileNotFoundError) and self.scheme != "https"
        if missing or status in (404, 410) or any(w in words for w in _MISSING):
            return BadInput(Reason.STORAGE_NOT_FOUND, f"{where}: is not there ({_brief(error)})")
        if isinstance(error, ImportError):
            return BadInput(Reason.STORAGE_UNSUPPORTED, f"{where}: {error}")
        return Unavailable(f"{where}: {_brief(error)}")


def _facts(facts: dict[str, Any]) -> dict[str, Any]:
    names = ("ETag", "etag", "md5Hash", "crc32c", "generation", "LastModified", "updated")
    tag = next((str(facts[n]) for n in names if facts.get(n)), "")
    return {"size": facts.get("size"), "tag": tag.strip('"')}


def _evidence(error: BaseException) -> tuple[int | None, str]:
    """(HTTP status, names and codes) of an error and what caused it: the outer ones often tell less."""
    status, words = None, []
    seen: BaseException | None = error
    while seen is not None:
        words.append(type(seen).__name__)
        if isinstance(seen, asyncio.TimeoutError):
            status = status or 504
        response = getattr(seen, "response", None)
        if isinstance(response, dict):
            words.append(str(response.get("Error", {}).get("Code", "")))
            status = status or response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        for attribute in ("status", "code"):
            value = getattr(seen, attribute, None)
            if status is None and str(value).isdigit():
                status = int(str(value))
        words.append(str(seen)[:300])
        seen = seen.__cause__ or seen.__context__
    return status, " ".join(words)


def _brief(error: BaseException) -> str:
    while isinstance(error, FileNotFoundError) and error.__cause__:
        error = error.__cause__
    return re.sub(r"\?\S*", "?…", " ".join(str(error).split()))[:300] or type(error).__name__
