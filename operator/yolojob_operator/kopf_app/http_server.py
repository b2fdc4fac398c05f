"""The operator's HTTP endpoints: /metrics for Prometheus, /healthz for the kubelet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from yolojob import http_server

ANSWER_TIMEOUT_SECONDS = 8.0
"""An event loop that answers later hangs; longer than the kubelet waits for a probe."""


def serve(address: str, registry: CollectorRegistry, unhealthy_reason: Callable[[], str]) -> WSGIServer:
    """Serve until the server is shut down.

    The current event loop computes the answers, so that /healthz fails if the loop hangs.

    Args:
        address: HOST:PORT; an empty host binds all addresses of the machine.
        registry: the metrics to serve.
        unhealthy_reason: returns why the operator is unhealthy; empty while it is healthy.

    Raises:
        OSError: the address cannot be bound.
    """
    loop = asyncio.get_running_loop()

    async def metrics(accept: str) -> tuple[str, str, bytes]:
        encode, content_type = choose_encoder(accept)
        return "200 OK", content_type, encode(registry)

    async def healthz(_: str) -> tuple[str, str, bytes]:
        reason = unhealthy_reason()
        return "503 Service Unavailable" if reason else "200 OK", "text/plain", f"{reason or 'ok'}\n".encode()

    paths = {"/metrics": metrics, "/healthz": healthz}

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        answer = paths.get(environ["PATH_INFO"])
        if answer is None:
            status, content_type, body = "404 Not Found", "text/plain", b"Not found: use /metrics or /healthz.\n"
        else:
            future = asyncio.run_coroutine_threadsafe(answer(environ.get("HTTP_ACCEPT", "")), loop)
            try:
                status, content_type, body = future.result(ANSWER_TIMEOUT_SECONDS)
            except TimeoutError:
                future.cancel()
                status, content_type, body = "503 Service Unavailable", "text/plain", b"the event loop hangs\n"
        start_response(status, [("Content-Type", content_type), ("Content-Length", str(len(body)))])
        return [body]

    host, _, port = address.rpartition(":")
    return http_server.serve(app, host.strip("[]"), int(port))
