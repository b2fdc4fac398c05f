"""A proxy in front of the API server that injects faults: delays, errors, silent or expired watches, outages.

It speaks plain HTTP to the operator and the cluster's TLS to the API server, with the credentials of KUBECONFIG.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from aiohttp import web
from kubernetes.aio import client, config

REASONS = {401: "Unauthorized", 409: "Conflict", 410: "Expired", 429: "TooManyRequests", 500: "InternalError"}
_PASSED_ON = ("Accept", "Content-Type", "User-Agent")


@dataclass
class Faults:
    """The current faults. The test's thread sets them."""

    away: bool = False
    """Every connection is closed without an answer."""
    refusals: tuple[int, ...] = ()
    """Status codes with which a share of all writing requests is refused."""
    share: float = 0.0
    reads: bool = False
    """Whether reading requests are refused, too."""
    delay: float = 0.0
    """Seconds before each request."""
    deaf: bool = False
    """Watches stay open, but deliver no events."""
    broken: int = 0
    """Every watch gets this error event if not 0; 410 means that its resourceVersion is too old."""
    counts: Counter[str] = field(default_factory=Counter)
    """Number of injected faults by kind."""


class Proxy:
    """The proxy, in a thread of its own."""

    def __init__(self, kubeconfig: Path) -> None:
        self.faults = Faults()
        self._kubeconfig = kubeconfig
        self._watches: dict[web.StreamResponse, web.Request] = {}
        self._random = random.Random(7)
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self.port = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._start())
        self._ready.set()
        self._loop.run_forever()

    async def _start(self) -> None:
        await config.load_kube_config(str(self._kubeconfig))
        self._api = client.ApiClient()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._api.rest_client.ssl_context, limit=100),
            timeout=aiohttp.ClientTimeout(total=None),
            read_bufsize=1 << 22,
        )
        app = web.Application(client_max_size=1 << 26)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = int(self._runner.addresses[0][1])

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self._session.close()
        await self._api.close()

    @property
    def watches(self) -> int:
        """Number of open watches."""
        return len(self._watches)

    def cut(self) -> None:
        """Close all open watches."""
        for request in list(self._watches.values()):
            if request.transport is not None:
                self._loop.call_soon_threadsafe(request.transport.abort)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        faults = self.faults
        if faults.away:
            faults.counts["away"] += 1
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if faults.delay:
            faults.counts["slow"] += 1
            await asyncio.sleep(faults.delay)
        changes = request.method != "GET" or faults.reads
        if changes and faults.refusals and self._random.random() < faults.share:
            code = self._random.choice(faults.refusals)
            faults.counts[str(code)] += 1
            return web.json_response(_status(code), status=code, headers={"Retry-After": "1"} if code == 429 else {})
        if "watch" in request.query and faults.broken:
            faults.counts[f"watch {faults.broken}"] += 1
            return web.Response(text=json.dumps({"type": "ERROR", "object": _status(faults.broken)}) + "\n")
        headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        url = self._api.configuration.host + request.path_qs
        data = await request.read() or None
        async with self._session.request(request.method, url, headers=headers, data=data) as answer:
            response = web.StreamResponse(status=answer.status)
            response.content_type = answer.content_type
            watches = "watch" in request.query
            try:
                await response.prepare(request)
                if watches:
                    self._watches[response] = request
                async for line in answer.content:
                    if watches and self.faults.deaf:
                        self.faults.counts["unheard"] += 1
                        continue
                    await response.write(line)
            except (ConnectionError, aiohttp.ClientConnectionError):
                self.faults.counts["cut"] += 1  # by the test or by the operator
            finally:
                self._watches.pop(response, None)
            return response

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(20)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)


def _status(code: int) -> dict[str, Any]:
    return {"kind": "Status", "code": code, "reason": REASONS[code], "message": "injected by the test"}


@contextmanager
def proxy(kubeconfig: Path, folder: Path) -> Iterator[tuple[Proxy, Path]]:
    """A running proxy, and a kubeconfig that leads through it."""
    running = Proxy(kubeconfig)
    running.start()
    path = folder / "kubeconfig"
    cluster = {"name": "faulty", "cluster": {"server": f"http://127.0.0.1:{running.port}"}}
    context = {"name": "faulty", "context": {"cluster": "faulty", "user": "nobody"}}
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [cluster],
                "contexts": [context],
                "users": [{"name": "nobody", "user": {}}],
                "current-context": "faulty",
            }
        )
    )
    try:
        yield running, path
    finally:
        running.stop()
