"""The API client: what the API server, or a proxy in front of it, answers."""

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

pytestmark = pytest.mark.processes

POD = {"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "x", "namespace": "default"}}


def client(status: int, data: bytes) -> ApiClient:
    """A client whose every request gets this response."""

    async def read() -> bytes:
        return data

    async def request(*_: Any, **__: Any) -> Any:
        return SimpleNamespace(status=status, headers={}, read=read)

    async def nothing(*_: Any) -> None:
        """There are no credentials to update and no connections to close."""

    api: Any = SimpleNamespace(
        configuration=SimpleNamespace(host="http://x"),
        update_params_for_auth=nothing,
        rest_client=SimpleNamespace(request=request),
        close=nothing,
    )
    return ApiClient(api, inside=False, observe=lambda *_: None)


@pytest.mark.parametrize("data", [b"[]", b'"slow down"', b"null", b"", b"<html>", b"[" * 100_000, b'{"message": null}'])
@pytest.mark.parametrize("status", [400, 403, 503])
def test_get_with_an_error_status_raises_api_error_whatever_the_body_is(status: int, data: bytes) -> None:
    async def live() -> None:
        api = client(status, data)
        with pytest.raises(ApiError) as error:
            await api.get(POD)
        assert error.value.status == status
        await api.close()

    asyncio.run(live())


def test_get_lease_while_all_creations_are_blocked_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A webhook that is down blocks each creation for many seconds, up to the limit of concurrent requests."""

    async def live() -> None:
        release = asyncio.Event()

        async def answer(request: web.Request) -> web.Response:
            if request.method == "POST":
                await release.wait()
            return web.json_response({"metadata": {"name": "x"}})

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        async with TestServer(app) as server:
            path = kubeconfig(tmp_path / "config", "c", f"http://127.0.0.1:{server.port}", c="default")
            # The library has read KUBECONFIG when it was imported.
            monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(path))
            api = await ApiClient.connect()
            creations = [asyncio.create_task(api.create(POD)) for _ in range(2 * MAX_CONCURRENT_REQUESTS)]
            try:
                for _ in range(3):  # the first one may open its connection; none waits for another request
                    assert await api.get_lease("default", "x")
                assert not any(task.done() for task in creations)
            finally:
                release.set()
                await asyncio.gather(*creations)
                await api.close()

    asyncio.run(asyncio.wait_for(live(), 60))
