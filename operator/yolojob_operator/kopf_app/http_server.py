"""The operator's HTTP server: /metrics for Prometheus, /healthz for the kubelet."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder


async def serve(address: str, registry: CollectorRegistry, unhealthy_reason: Callable[[], str]) -> web.AppRunner:
    """Serve until the runner is cleaned up.

    Args:
        address: HOST:PORT; an empty host is every address of the machine.
        registry: what is scraped.
        unhealthy_reason: says what is wrong; nothing, and the operator is well.

    Raises:
        OSError: the address cannot be had.
    """

    async def metrics(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(registry), headers={"Content-Type": content_type})

    async def healthz(request: web.Request) -> web.Response:  # noqa: ARG001
        words = unhealthy_reason()
        return web.Response(text=f"{words or 'ok'}\n", status=503 if words else 200)

    app = web.Application()
    app.add_routes([web.get("/metrics", metrics), web.get("/healthz", healthz)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    host, _, port = address.rpartition(":")
    await web.TCPSite(runner, host.strip("[]") or None, int(port)).start()
    return runner
