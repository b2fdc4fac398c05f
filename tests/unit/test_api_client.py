"""What the API server, or something in front of it, answers to the operator."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.config import kube_config
from support import kubeconfig
from yolojob_operator.kube.api_client import MAX_CONCURRENT_REQUESTS, ApiClient, ApiError


def cluster(status: int, data: bytes) -> ApiClient:
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
    return ApiClient(api, inside=False, observe=lambda *_: None)


@pytest.mark.parametrize("data", [b"[]", b'"slow down"', b"null", b"", b"<html>", b"[" * 100_000, b'{"message": null}'])
@pytest.mark.parametrize("status", [400, 403, 503])
def test_an_error_is_an_error_whatever_its_words_are(status: int, data: bytes) -> None:
    async def ask() -> None:
        made = cluster(status, data)
        with pytest.raises(ApiError) as refused:
            await made.get({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "x", "namespace": "default"}})
        assert refused.value.status == status
        await made.close()

    asyncio.run(ask())


def test_a_lease_does_not_wait_behind_creations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A webhook that is away holds each creation for many seconds, as many as there may be at once."""
    release = asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        if request.method == "POST":
            await release.wait()
        return web.json_response({"metadata": {"name": "x"}})

    async def ask() -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        async with TestServer(app) as server:
            path = kubeconfig(tmp_path / "config", "c", f"http://127.0.0.1:{server.port}", c="default")
            # The library has read KUBECONFIG when it was imported.
            monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(path))
            made = await ApiClient.connect()
            pod = {"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "x", "namespace": "default"}}
            creations = [asyncio.create_task(made.create(pod)) for _ in range(2 * MAX_CONCURRENT_REQUESTS)]
            try:
                for _ in range(3):  # the first opens its connection, perhaps; none waits for another's
                    assert await asyncio.wait_for(made.get_lease("default", "x"), 5)
                assert not any(task.done() for task in creations)
            finally:
                release.set()
                await asyncio.gather(*creations)
                await made.close()

    asyncio.run(ask())
