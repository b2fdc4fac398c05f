"""The operator's HTTP server: /metrics for Prometheus, /healthz for the kubelet."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder


async def serve(address: str, registry: CollectorRegistry, unhealthy_reason: Callable[[], str]) -> web.AppRunner:
    """Serve until the runner is cleaned up.

    Args:
        address: HOST:PORT; an empty host binds all addresses of the machine.
        registry: the metrics to serve.
        unhealthy_reason: returns why the operator is unhealthy; empty while it is healthy.

    Raises:
        OSError: the address cannot be bound.
    """

    async def metrics(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(registry), headers={"Content-Type": content_type})

    async def healthz(request: web.Request) -> web.Response:  # noqa: ARG001
        reason = unhealthy_reason()
        return web.Response(text=f"{reason or 'ok'}\n", status=503 if reason else 200)

    app = web.Application()
    app.add_routes([web.get("/metrics", metrics), web.get("/healthz", healthz)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    host, _, port = address.rpartition(":")
    await web.TCPSite(runner, host.strip("[]") or None, int(port)).start()
    return runner
