"""The HTTP server for metrics and probes, under clients that are silent, many, or break off."""

from __future__ import annotations

import socket
import threading
import urllib.request
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from support import eventually

from yolojob import http_server
from yolojob.http_server import MAX_CONNECTIONS, serve

pytestmark = pytest.mark.processes


def app(_: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"ok"]


@pytest.fixture
def port() -> Iterator[int]:
    server = serve(app, "127.0.0.1", 0)
    yield server.server_port
    server.shutdown()
    server.server_close()


def get(port: int) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as response:
        return bytes(response.read())


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def test_silent_connections_neither_block_nor_pile_up(port: int) -> None:
    before = threading.active_count()
    silent = [connect(port) for _ in range(10 * MAX_CONNECTIONS)]
    assert get(port) == b"ok"
    assert silent[0].recv(1) == b"", "the oldest is closed"
    eventually(lambda: threading.active_count() - before <= MAX_CONNECTIONS, "the threads of closed connections end")
    for connection in silent:
        connection.close()


def test_silent_connection_is_closed_after_a_time(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.setattr(http_server._SilentHandler, "timeout", 0.2)  # noqa: SLF001 - ten seconds would be a wait
    with connect(port) as silent:
        assert silent.recv(1) == b""


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b"GET", b"GET / HTTP/1.0\r\nX: " + b"y" * 200_000])
def test_nonsense_prints_nothing_and_does_not_stop_the_server(
    port: int, data: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    with connect(port) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)
        except OSError:
            pass  # it was closed before all was sent
    assert get(port) == b"ok"
    assert "Traceback" not in capfd.readouterr().err


def test_all_addresses_include_ipv4() -> None:
    server = serve(app, "", 0)
    try:
        assert get(server.server_port) == b"ok"
    finally:
        server.shutdown()
        server.server_close()
