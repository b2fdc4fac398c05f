"""What the API server, or something in front of it, answers to the operator."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from yolojob_operator.cluster import Cluster, ClusterError


def cluster(status: int, data: bytes) -> Cluster:
    async def read() -> bytes:
        return data

    async def request(*_: Any, **__: Any) -> Any:
        return SimpleNamespace(status=status, headers={}, read=read)

    async def nothing(*_: Any) -> None:
        """No credentials."""

    api: Any = SimpleNamespace(
        configuration=SimpleNamespace(host="http://x"),
        update_params_for_auth=nothing,
        rest_client=SimpleNamespace(request=request),
        close=nothing,
    )
    return Cluster(api, inside=False, observe=lambda *_: None)


@pytest.mark.parametrize("data", [b"[]", b'"slow down"', b"null", b"", b"<html>", b"[" * 100_000, b'{"message": null}'])
@pytest.mark.parametrize("status", [400, 403, 503])
def test_an_error_is_an_error_whatever_its_words_are(status: int, data: bytes) -> None:
    async def ask() -> None:
        made = cluster(status, data)
        with pytest.raises(ClusterError) as refused:
            await made.get({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "x", "namespace": "default"}})
        assert refused.value.status == status
        await made.close()

    asyncio.run(ask())
