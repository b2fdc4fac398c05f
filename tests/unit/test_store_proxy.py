"""The proxies in front of rank 0's store forward connections of workers of the attempt, and no others."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from yolojob_trainer.distributed import store_proxy
from yolojob_trainer.distributed.store_proxy import LOOPBACK, ClientProxy, ServerProxy, attempt_key

pytestmark = pytest.mark.processes

DEADLINE = 30
KEY = b"k" * 32


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Stands for the store: answers every byte with the same byte."""
    while data := await reader.read(1024):
        writer.write(data)
        await writer.drain()
    writer.close()


@asynccontextmanager
async def server_proxy_port(key: bytes = KEY, store: bool = True) -> AsyncIterator[int]:
    """An open server proxy in front of an echoing store.

    Yields:
        Its port.
    """
    server = await asyncio.start_server(echo, LOOPBACK, 0)
    store_port = server.sockets[0].getsockname()[1]
    if not store:
        server.close()
    opened = await ServerProxy(key, store_port).open(0)
    try:
        # Port 0 is another one for each address family.
        yield next(s for s in opened.sockets if s.family == socket.AF_INET).getsockname()[1]
    finally:
        opened.close()
        server.close()


async def answer(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    writer.write(data)
    try:
        return await reader.read(1024)
    finally:
        writer.close()


async def open_client_proxy(key: bytes, port: int) -> ClientProxy:
    proxy = ClientProxy(key, LOOPBACK, port)
    await asyncio.wait_for(proxy.open(), DEADLINE)
    return proxy


def test_client_with_the_key_reaches_the_store() -> None:
    async def run() -> bytes:
        async with server_proxy_port() as port:
            return await answer((await open_client_proxy(KEY, port)).port, b"hello")

    assert asyncio.run(run()) == b"hello"


@pytest.mark.parametrize("key", [b"x" * 32, b""])
def test_client_with_another_key_is_refused(key: bytes) -> None:
    async def run() -> None:
        async with server_proxy_port() as port:
            await ClientProxy(key, LOOPBACK, port)._connect()  # noqa: SLF001 - one attempt; `open` retries until it succeeds

    with pytest.raises(OSError, match="has closed the connection"):
        asyncio.run(run())


def test_client_refuses_a_server_without_the_key() -> None:
    """Somebody else has taken the address of worker 0."""

    async def impostor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"n" * 32)
        await reader.readexactly(64)
        writer.write(b"p" * 32)
        await writer.drain()

    async def run() -> None:
        server = await asyncio.start_server(impostor, LOOPBACK, 0)
        async with server:
            await ClientProxy(KEY, LOOPBACK, server.sockets[0].getsockname()[1])._connect()  # noqa: SLF001

    with pytest.raises(OSError, match="does not know the attempt's key"):
        asyncio.run(run())


def test_server_sends_no_proof_while_the_store_is_closed() -> None:
    async def run() -> None:
        async with server_proxy_port(store=False) as port:
            await ClientProxy(KEY, LOOPBACK, port)._connect()  # noqa: SLF001

    with pytest.raises(OSError, match="has closed the connection"):
        asyncio.run(run())


def test_client_proxy_refuses_connections_until_the_store_is_reachable() -> None:
    async def run() -> None:
        with socket.create_server((LOOPBACK, 0)) as taken:
            port = taken.getsockname()[1]
        proxy = ClientProxy(KEY, LOOPBACK, port)
        opening = asyncio.ensure_future(proxy.open())
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(LOOPBACK, proxy.port)
        opening.cancel()

    asyncio.run(run())


@pytest.mark.parametrize("nonsense", [b"GET / HTTP/1.0\r\n\r\n", b"\0" * 64, b"\xff" * 100_000])
def test_unauthenticated_client_gets_a_challenge_and_nothing_else(nonsense: bytes) -> None:
    async def run() -> bytes:
        async with server_proxy_port() as port:
            reader, writer = await asyncio.open_connection(LOOPBACK, port)
            writer.write(nonsense)
            if len(nonsense) < 64:
                writer.write_eof()
            try:
                return await asyncio.wait_for(reader.read(), DEADLINE)
            except ConnectionResetError:  # the proxy closes without having read everything
                return b""
            finally:
                writer.close()

    assert len(asyncio.run(run())) in (0, 32)


def test_silent_clients_do_not_keep_workers_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Far more connections than the limit stay open and silent; the oldest are closed."""
    monkeypatch.setattr(store_proxy, "MAX_UNAUTHENTICATED", 20)
    monkeypatch.setattr(store_proxy, "HANDSHAKE_SECONDS", DEADLINE)

    async def run() -> tuple[bytes, int]:
        async with server_proxy_port() as port:
            silent = [await asyncio.open_connection(LOOPBACK, port) for _ in range(100)]
            reply = await answer((await open_client_proxy(KEY, port)).port, b"hello")
            closed = 0
            for reader, _ in silent[:70]:
                closed += len(await asyncio.wait_for(reader.read(), DEADLINE)) == 32
            return reply, closed

    assert asyncio.run(run()) == (b"hello", 70)


def test_key_differs_between_attempts_and_jobs(tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    for number, file in enumerate(files):
        file.write_bytes(bytes([number]) * 32)
    keys = {attempt_key(file, attempt) for file in files for attempt in (1, 2)}
    assert len(keys) == 4


def test_short_secret_is_refused(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"123")
    with pytest.raises(ValueError, match="has 3 bytes; a secret has at least 16"):
        attempt_key(tmp_path / "short", 1)
