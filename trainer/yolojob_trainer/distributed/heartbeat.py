"""Detects a dead peer within seconds, however it died.

A process that is killed closes its connections, and gloo or NCCL fail immediately. A process that hangs, or whose
machine loses power, closes nothing: the other ranks would wait for the timeout of the collective, which must be long
enough for slow but healthy work. Therefore every rank keeps one connection to rank 0, and both sides send a byte every
second.
"""

from __future__ import annotations

import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

BEAT_INTERVAL_SECONDS = 1.0
HEARTBEAT_TIMEOUT_SECONDS = 15.0
"""A peer that sends nothing for this long is lost. Python code never holds the interpreter that long."""
ROOT_CAUSE_GRACE_SECONDS = 3.0
"""Time for the main thread to find a more specific cause than a lost peer and to exit with it."""

BEAT, GOODBYE = b".", b"q"
MAX_STRANGERS = 256
"""Connections that have not identified themselves; ranks do so immediately."""


@dataclass
class Peer:
    """The other end of a connection."""

    name: str
    last_heard: float
    """Time of the last byte, by `time.monotonic`."""


class Heartbeat:
    """This process's ends of the connections, served by a thread from `listen` or `connect` until `stop`."""

    def __init__(self, on_lost: Callable[[str], None]) -> None:
        """
        Args:
            on_lost: called once, from the thread, with a description of the lost peer; must end the process.
        """
        self.peers: dict[socket.socket, Peer] = {}
        """Connected peers that have identified themselves; changed by the thread."""
        self._strangers: list[socket.socket] = []
        """Connections that have not sent the token yet, oldest first."""
        self._on_lost = on_lost
        self._stop = threading.Event()
        self._selector = selectors.DefaultSelector()
        self._server: socket.socket | None = None
        self._token = ""
        # Wakes the thread up, so that `stop` need not wait for the next beat.
        self._wake_recv, self._wake_send = socket.socketpair()
        self._selector.register(self._wake_recv, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def listen(self, publish: Callable[[str], None], address: str | None) -> None:
        """On rank 0: publish the port and a shared token. Connections without the token (a port scan) are ignored.

        Args:
            publish: called with what `connect` needs.
            address: to listen at; None is all addresses.
        """
        if address:
            server = socket.create_server((address, 0), backlog=1024)
        else:
            dual = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if dual else socket.AF_INET
            server = socket.create_server(("", 0), backlog=1024, family=family, dualstack_ipv6=dual)
        self._server = server
        self._token = secrets.token_hex(16)
        publish(f"{server.getsockname()[1]} {self._token}")
        self._selector.register(server, selectors.EVENT_READ)
        self._thread.start()

    def connect(self, host: str, published: str, rank: int) -> None:
        """On the other ranks: connect to rank 0.

        Args:
            host: address of rank 0.
            published: the text that rank 0 has published.
            rank: this process's rank.

        Raises:
            OSError: rank 0 does not accept the connection.
        """
        port, token = published.split()
        connection = socket.create_connection((host, int(port)), timeout=HEARTBEAT_TIMEOUT_SECONDS)
        connection.sendall(f"{token} {rank}\n".encode())
        self._add_peer(connection, "rank 0")
        self._thread.start()

    def stop(self) -> None:
        """Send a goodbye to all peers: from now on neither side reports the other as lost."""
        self._stop.set()
        self._wake_send.send(GOODBYE)
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(2 * BEAT_INTERVAL_SECONDS)

    def _add_peer(self, connection: socket.socket, name: str) -> None:
        connection.setblocking(False)
        self._selector.register(connection, selectors.EVENT_READ)
        self.peers[connection] = Peer(name=name, last_heard=time.monotonic())

    def _run(self) -> None:
        lost = None
        due = time.monotonic()
        while lost is None and not self._stop.is_set():
            ready = [key.fileobj for key, _ in self._selector.select(max(due - time.monotonic(), 0.0))]
            if self._wake_recv in ready:
                break
            lost = next(filter(None, (self._read(s) for s in ready if isinstance(s, socket.socket))), None)
            # Beats follow the clock and never answer a beat: two sides that answer each other would never rest.
            if lost is None and time.monotonic() >= due:
                due = time.monotonic() + BEAT_INTERVAL_SECONDS
                lost = self._find_silent_peer() or self._send_to_all(BEAT)
        if lost is None:
            self._send_to_all(GOODBYE)
        elif not self._stop.wait(ROOT_CAUSE_GRACE_SECONDS):
            self._on_lost(lost)

    def _read(self, source: socket.socket) -> str | None:
        """Read from a ready socket; return a description of the peer if it is lost."""
        if source is self._server:
            self._accept(source)
            return None
        if source not in self.peers:
            self._authenticate(source)
            return None
        peer = self.peers[source]
        try:
            data = source.recv(4096)
        except BlockingIOError:
            return None
        except OSError as error:
            return f"{peer.name} is gone: {error.strerror}"
        if GOODBYE in data:
            self._remove_peer(source)
            return None
        if not data:
            return f"{peer.name} is gone"
        peer.last_heard = time.monotonic()
        return None

    def _accept(self, server: socket.socket) -> None:
        """Accept a connection. Beyond MAX_STRANGERS, the one that has been silent for the longest time is closed."""
        try:
            connection, _ = server.accept()
        except OSError:  # it is gone, or there are no file descriptors left
            return
        connection.setblocking(False)
        self._selector.register(connection, selectors.EVENT_READ)
        self._strangers.append(connection)
        if len(self._strangers) > MAX_STRANGERS:
            oldest = self._strangers.pop(0)
            self._selector.unregister(oldest)
            oldest.close()

    def _authenticate(self, connection: socket.socket) -> None:
        """Accept a connection that sends the token, and close any other. This never waits: many may be silent."""
        try:
            token, _, rank = connection.recv(256).split(b"\n")[0].decode(errors="replace").partition(" ")
        except OSError:
            token, rank = "", ""
        self._selector.unregister(connection)
        self._strangers.remove(connection)
        if secrets.compare_digest(token.encode(), self._token.encode()):
            self._add_peer(connection, f"rank {rank}")
        else:
            connection.close()

    def _find_silent_peer(self) -> str | None:
        now = time.monotonic()
        for peer in self.peers.values():
            if now - peer.last_heard > HEARTBEAT_TIMEOUT_SECONDS:
                return f"{peer.name} has sent no heartbeat for {HEARTBEAT_TIMEOUT_SECONDS:.0f} s"
        return None

    def _send_to_all(self, data: bytes) -> str | None:
        """Send to every peer; return a description of the first one that is lost."""
        for connection, peer in list(self.peers.items()):
            try:
                connection.send(data)
            except BlockingIOError:
                continue  # the buffer is full because the peer does not read; its own beats show whether it is alive
            except OSError as error:
                return f"{peer.name} is gone: {error.strerror}"
        return None

    def _remove_peer(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        connection.close()
        del self.peers[connection]
