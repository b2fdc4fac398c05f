"""Object stores: listings in pages, and errors: which ones are permanent, and which are retried."""

from __future__ import annotations

from typing import Any

import pytest
from yolojob_trainer.data.object_store import ObjectStore, Unavailable
from yolojob_trainer.errors import BadInput

HTTPS = {401: "StorageDenied", 403: "StorageDenied", 404: "StorageNotFound", 410: "StorageNotFound"}
"""Reasons of the statuses that are permanent over https; all others are tried again."""


class HttpError(Exception):
    """An error of an HTTP client, with the message of the server."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def translated(scheme: str, error: Exception) -> Any:
    store = ObjectStore.__new__(ObjectStore)
    store.scheme, store.shown, store._field = scheme, f"{scheme}://x/y", "spec.dataset.uri"  # noqa: SLF001
    return store._translated(error)  # noqa: SLF001


@pytest.mark.parametrize("status", [*HTTPS, 400, 408, 425, 429, 500, 502, 503, 504, 520])
@pytest.mark.parametrize("words", ["", "NotFound", "Forbidden", "does not exist"])
def test_https_error_counts_by_its_status_alone(status: int, words: str) -> None:
    """fsspec raises FileNotFoundError for every failure, and servers may say anything."""
    error = FileNotFoundError("https://x/y")
    error.__cause__ = HttpError(status, words)
    found = translated("https", error)
    if status in HTTPS:
        assert isinstance(found, BadInput)
        assert found.reason == HTTPS[status]
    else:
        assert isinstance(found, Unavailable)


def test_https_error_without_a_status_is_tried_again() -> None:
    error = FileNotFoundError("https://x/y")
    error.__cause__ = ConnectionResetError("Connection reset by peer")
    assert isinstance(translated("https", error), Unavailable)


def test_missing_object_of_a_bucket_is_permanent() -> None:
    assert translated("s3", FileNotFoundError("bucket/key")).reason == "StorageNotFound"


class PagedBucket:
    """A bucket of fsspec that lists a few objects at a time, and refuses some requests."""

    def __init__(self, names: list[str], page_size: int, refused: tuple[int, ...] = ()) -> None:
        self.names, self.page_size, self.refused = names, page_size, refused
        self.tokens: list[str] = []
        self.loses_tokens = False

    def split_path(self, path: str) -> tuple[str, str, None]:
        bucket, _, key = path.partition("/")
        return bucket, key, None

    def page(self, prefix: str, token: str) -> tuple[list[str], str]:
        self.tokens.append(token)
        if len(self.tokens) in self.refused:
            raise OSError("SlowDown: reduce your request rate")
        names = [name for name in self.names if name.startswith(prefix)]
        start = int(token or 0)
        end = start + self.page_size
        return names[start:end], str(end) if end < len(names) else ""

    def call_s3(self, method: str, *, Bucket: str, Prefix: str, ContinuationToken: str = "") -> dict[str, Any]:  # noqa: N803
        assert (method, Bucket) == ("list_objects_v2", "bucket")
        names, token = self.page(Prefix, ContinuationToken)
        contents = [{"Key": name, "Size": len(name), "ETag": f'"{name}"'} for name in names]
        next_page = {"NextContinuationToken": token} if token and not self.loses_tokens else {}
        return {"Contents": contents, "IsTruncated": bool(token), **next_page}

    def call(self, method: str, path: str, bucket: str, *, json_out: bool, **query: str | None) -> dict[str, Any]:
        assert (method, path.format(bucket), json_out) == ("GET", "b/bucket/o", True)
        names, token = self.page(query["prefix"] or "", query["pageToken"] or "")
        items = [{"name": name, "size": str(len(name)), "etag": name} for name in names]
        return {"items": items, "nextPageToken": token} if token else {"items": items}

    def info(self, path: str) -> dict[str, Any]:
        key = path.partition("/")[2]
        if key not in self.names:
            raise FileNotFoundError(path)
        return {"type": "file", "size": len(key), "ETag": key}


def store_of(scheme: str, bucket: PagedBucket, root: str) -> ObjectStore:
    store = ObjectStore.__new__(ObjectStore)
    store.scheme, store.shown, store.retry_timeout = scheme, f"{scheme}://{root}", 30.0
    store._field, store._fs, store._root = "spec.dataset.uri", bucket, root  # noqa: SLF001
    return store


@pytest.mark.parametrize("scheme", ["s3", "gs"])
@pytest.mark.parametrize("page_size", [1, 2, 3, 1000])
def test_objects_are_listed_page_by_page(scheme: str, page_size: int) -> None:
    names = ["set/b.jpg", "set/", "set/a/", "set/a/1.jpg", "set.zip", "settings/x", "set/z"]
    found = store_of(scheme, PagedBucket(names, page_size), "bucket/set").files()
    assert [(file.path, file.size, file.tag) for file in found] == [
        ("a/1.jpg", 11, "set/a/1.jpg"),
        ("b.jpg", 9, "set/b.jpg"),
        ("z", 5, "set/z"),
    ]
    assert len(store_of(scheme, PagedBucket(names, page_size), "bucket").files()) == 5


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_root_that_is_an_object_is_the_only_file(scheme: str) -> None:
    names = ["set.zip", "set.zip.old"]
    (file,) = store_of(scheme, PagedBucket(names, 10), "bucket/set.zip").files()
    assert (file.path, file.size) == ("", 7)
    with pytest.raises(BadInput, match="there are no files"):
        store_of(scheme, PagedBucket(names, 10), "bucket/se").files()


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_refused_page_is_requested_again_and_not_the_whole_listing(scheme: str) -> None:
    bucket = PagedBucket([f"set/{i}" for i in range(6)], 2, refused=(2,))
    assert len(store_of(scheme, bucket, "bucket/set").files()) == 6
    assert bucket.tokens == ["", "2", "2", "4"]


def test_incomplete_listing_of_a_server_without_tokens_is_an_error() -> None:
    bucket = PagedBucket([f"set/{i}" for i in range(6)], 2)
    bucket.loses_tokens = True
    store = store_of("s3", bucket, "bucket/set")
    store.retry_timeout = 0.0
    with pytest.raises(Unavailable, match="no continuation token"):
        store.files()
