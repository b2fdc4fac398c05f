"""Errors of object stores: which ones are permanent, and which are tried again."""

from __future__ import annotations

from typing import Any

import pytest
from yolojob_trainer.data.object_store import ObjectStore, Unavailable
from yolojob_trainer.errors import BadInput

HTTPS = {401: "StorageDenied", 403: "StorageDenied", 404: "StorageNotFound", 410: "StorageNotFound"}
"""Reasons of the statuses that are permanent over https; all others are tried again."""


class HttpError(Exception):
    """An error of an HTTP client, with the words of the server."""

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
