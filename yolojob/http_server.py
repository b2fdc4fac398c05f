"""An HTTP server for metrics and probes that no client can exhaust. Serves from a thread."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

MAX_CONNECTIONS = 32
"""Connections at a time: those of Prometheus, the operator, the kubelet and a few people."""
CONNECTION_TIMEOUT_SECONDS = 10.0
"""A connection that sends nothing for so long is closed."""

App = Callable[[dict[str, Any], Any], Iterable[bytes]]
"""A WSGI application (PEP 3333)."""


class _Server(ThreadingMixIn, WSGIServer):
    """Serves each connection in a thread. Beyond MAX_CONNECTIONS, the oldest one is closed: the others come from
    clients that read and leave, and a new one may be the kubelet's probe."""

    daemon_threads = True
    request_queue_size = 128
    """The kernel drops a connection beyond the queue, and the client repeats it after a second."""

    def __init__(self, address: tuple[str, int], family: socket.AddressFamily) -> None:
        self.address_family = family
        super().__init__(address, _SilentHandler)
        self._lock = threading.Lock()
        self._open: dict[socket.socket, None] = {}
        """Oldest first."""

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open[request] = None
            surplus = list(self._open)[:-MAX_CONNECTIONS]
            for oldest in surplus:
                del self._open[oldest]
        for oldest in surplus:
            with suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)  # its thread sees the end of the input, and closes it
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._open.pop(request, None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Do not print a traceback: clients that break off are no fault of this server."""


class _SilentHandler(WSGIRequestHandler):
    timeout = CONNECTION_TIMEOUT_SECONDS

    def log_message(self, *_: Any) -> None:
        """Do not log requests: there are many, and they are not of interest."""


def serve(app: App, host: str, port: int) -> WSGIServer:
    """Serve until the server is shut down or the process ends.

    Args:
        app: called in the thread of a connection.
        host: address to listen at; empty: all addresses of the machine.
        port: 0 chooses one; see `server_port` of the result.

    Raises:
        OSError: the address cannot be bound.
    """
    dual = not host and socket.has_dualstack_ipv6()
    server = _Server((host, port), socket.AF_INET6 if dual or ":" in host else socket.AF_INET)
    places = threading.BoundedSemaphore(MAX_CONNECTIONS)

    def bounded(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        # A closed connection does not end the thread that answers it.
        if not places.acquire(blocking=False):
            start_response("503 Service Unavailable", [("Content-Type", "text/plain")])
            return [b"too many requests at a time\n"]
        try:
            return app(environ, start_response)
        finally:
            places.release()

    server.set_app(bounded)
    threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
    return server
