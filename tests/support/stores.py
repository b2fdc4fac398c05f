"""Real servers for tests: S3 (moto), Google Cloud Storage (an emulator), HTTPS; and a proxy that misbehaves on request."""

from __future__ import annotations

import http.client
import http.server
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

CHUNK = 1 << 16


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class Proxy:
    """Passes requests on to a server, and counts, holds, refuses or cuts them as the test wants."""

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream)
        self.requests: list[tuple[str, str]] = []
        """(method, path) of every request."""
        self.refuse: Callable[[str, str], int] = lambda _method, _path: 0
        """Status with which a request is refused; 0 passes it on."""
        self.holds: Callable[[int], bool] = lambda _start: False
        """Whether a request for the bytes from `start` on has to wait still."""
        self.cut: Callable[[str, str], int] = lambda _method, _path: -1
        """Bytes of the body after which the connection is cut; -1 leaves it."""
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                proxy.serve(self)

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any

            def log_message(self, *_: object) -> None:
                """Tests look at `requests`."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def serve(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        self.requests.append((handler.command, handler.path))
        if status := self.refuse(handler.command, handler.path):
            handler.send_response(status)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        if asked := handler.headers.get("Range"):
            while self.holds(int(asked.removeprefix("bytes=").partition("-")[0])):
                time.sleep(0.05)
        connection = http.client.HTTPConnection(self.upstream.hostname or "", self.upstream.port, timeout=30)
        connection.request(handler.command, handler.path, body, dict(handler.headers))
        answer = connection.getresponse()
        handler.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length", "server", "date"):
                handler.send_header(name, value)
        content = answer.read()
        length = answer.getheader("Content-Length") if handler.command == "HEAD" else str(len(content))
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


@contextmanager
def https(folder: Path, certificates: Path, *, ranges: bool, cut_first: int = -1) -> Iterator[tuple[str, list[str]]]:
    """A web server with a certificate of our own authority: (address, the Range header of every request).

    Args:
        folder: what it serves.
        certificates: where the authority's certificate is left, as ca.pem.
        ranges: whether it knows them; Python's own server does not.
        cut_first: bytes after which the first answer's connection is cut.
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
            self.answer(b"", folder / self.path.partition("?")[0].lstrip("/"))

        def do_GET(self) -> None:
            path = folder / self.path.partition("?")[0].lstrip("/")
            if not path.is_file():
                self.send_error(404)
                return
            content = path.read_bytes()
            asked = self.headers.get("Range", "")
            seen.append(asked)
            if ranges and asked:
                start = int(asked.removeprefix("bytes=").partition("-")[0])
                self.answer(content[start:], path, start)
            else:
                self.answer(content, path)

        def answer(self, content: bytes, path: Path, start: int = -1) -> None:
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
            """Tests look at what was asked for."""

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
        """With which AWS' libraries find and may use it."""

    def put(self, key: str, data: bytes) -> None:
        self._client.put_object(Bucket=self.name, Key=key, Body=data)

    def get(self, key: str) -> bytes:
        return self._client.get_object(Bucket=self.name, Key=key)["Body"].read()  # type: ignore[no-any-return]

    def remove(self, key: str) -> None:
        self._client.delete_object(Bucket=self.name, Key=key)

    def keys(self, prefix: str = "") -> list[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]
