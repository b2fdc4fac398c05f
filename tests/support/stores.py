"""Servers for tests of storage: a bucket of an S3 server, an HTTPS server, and a proxy that fails on request."""

from __future__ import annotations

import http.client
import http.server
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

HOLD_TIMEOUT_SECONDS = 120.0


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class Proxy:
    """Forwards requests to a server, and records, holds, refuses or cuts them as the test says."""

    def __init__(self, upstream: str, host: str = "127.0.0.1", port: int = 0) -> None:
        self.upstream = urlsplit(upstream)
        self.requests: list[tuple[str, str]] = []
        """(method, path) of every request."""
        self.refuse: Callable[[str, str], int] = lambda _method, _path: 0
        """Returns the status with which a request (method, path) is refused; 0 forwards it."""
        self.holds: Callable[[int], bool] = lambda _start: False
        """Whether a request for the bytes from `start` on waits for `released`."""
        self.released = threading.Event()
        self.cut: Callable[[str, str], int] = lambda _method, _path: -1
        """Returns the number of bytes of the body after which the connection is cut; -1 does not cut it."""
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                proxy.serve(self)

            def log_message(self, *_: object) -> None:
                """Silent: tests look at `requests`."""

        for method in ("GET", "PUT", "HEAD", "POST", "DELETE"):
            setattr(Handler, f"do_{method}", Handler.handle_any)

        self.server = Server((host, port), Handler)
        self.url = f"http://{host}:{self.server.port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def serve(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        self.requests.append((handler.command, handler.path))
        if status := self.refuse(handler.command, handler.path):
            handler.send_response(status)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        if (requested := handler.headers.get("Range")) and self.holds(_first_byte(requested)):
            self.released.wait(HOLD_TIMEOUT_SECONDS)
        connection = http.client.HTTPConnection(self.upstream.hostname or "", self.upstream.port, timeout=30)
        connection.request(handler.command, handler.path, body, dict(handler.headers))
        response = connection.getresponse()
        handler.send_response(response.status)
        for name, value in response.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length", "server", "date"):
                handler.send_header(name, value)
        content = response.read()
        length = response.getheader("Content-Length") if handler.command == "HEAD" else str(len(content))
        handler.send_header("Content-Length", length or "0")
        handler.end_headers()
        cut = self.cut(handler.command, handler.path)
        if 0 <= cut < len(content):
            handler.wfile.write(content[:cut])
            handler.wfile.flush()
            handler.close_connection = True
            handler.connection.close()
            return
        handler.wfile.write(content)
        connection.close()


def _first_byte(requested: str) -> int:
    """Start of a Range header."""
    return int(requested.removeprefix("bytes=").partition("-")[0])


@contextmanager
def https(
    folder: Path, certificates: Path, *, ranges: bool, cut_first: int = -1, redirect: tuple[str, str] | None = None
) -> Iterator[tuple[str, list[str]]]:
    """A web server with a certificate of its own authority: (address, the Range header of every request).

    Args:
        folder: the files that it serves.
        certificates: folder for the authority's certificate, ca.pem.
        ranges: whether it supports Range headers; Python's own server does not.
        cut_first: number of bytes after which the first response is cut; -1 does not cut it.
        redirect: (name of the header, address) with which every request is redirected; None: none is. Some clients
            follow the header URI as well as Location.
    """
    import trustme

    authority = trustme.CA()
    authority.cert_pem.write_to_path(certificates / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    seen: list[str] = []
    cuts = [cut_first]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.respond(b"", folder / self.path.partition("?")[0].lstrip("/"))

        def do_GET(self) -> None:
            path = folder / self.path.partition("?")[0].lstrip("/")
            if not path.is_file():
                self.send_error(404)
                return
            content = path.read_bytes()
            requested = self.headers.get("Range", "")
            seen.append(requested)
            if ranges and requested:
                start = _first_byte(requested)
                self.respond(content[start:], path, start)
            else:
                self.respond(content, path)

        def respond(self, content: bytes, path: Path, start: int = -1) -> None:
            if redirect:
                self.send_response(302)
                self.send_header(*redirect)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if not path.is_file():
                self.send_error(404)
                return
            size = path.stat().st_size
            self.send_response(206 if start >= 0 else 200)
            self.send_header("Content-Length", str(len(content) if self.command == "GET" else size))
            self.send_header("ETag", f'"{size}"')
            if start >= 0:
                self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
            self.end_headers()
            if self.command == "GET" and 0 <= cuts[0] < len(content):
                content = content[: cuts[0]]
                cuts[0] = -1
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Silent: tests look at the yielded headers."""

    server = Server(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"https://localhost:{server.port}", seen
    finally:
        server.shutdown()


class Bucket:
    """A bucket of a real S3 server behind a proxy."""

    def __init__(self, proxy: Proxy, name: str, client: Any, environment: dict[str, str]) -> None:
        self.proxy = proxy
        self.name = name
        self._client = client
        self.environment = environment
        """Environment variables with which AWS libraries find and may use the bucket."""

    def put(self, key: str, data: bytes) -> None:
        self._client.put_object(Bucket=self.name, Key=key, Body=data)

    def get(self, key: str) -> bytes:
        return self._client.get_object(Bucket=self.name, Key=key)["Body"].read()  # type: ignore[no-any-return]

    def remove(self, key: str) -> None:
        self._client.delete_object(Bucket=self.name, Key=key)

    def keys(self, prefix: str = "") -> list[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]
