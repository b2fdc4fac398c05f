"""Noticing a dead peer in seconds, however it died.

A process that is killed closes its connections, and gloo or NCCL fail at once. One that hangs, or whose machine loses its
power, closes nothing: the others would wait for the collective's time-out, which must be long enough for honest work. So
every rank holds one quiet connection to rank 0, and both sides say something every second.
"""

from __future__ import annotations

import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable

EVERY = 1.0
"""Seconds between two beats."""
SILENCE = 15.0
"""Seconds without a beat after which a peer is lost: longer than Python code ever holds the interpreter."""
GRACE = 3.0
"""Seconds for the main thread to find a better word for what has happened than a lost peer."""

BEAT, BYE = b".", b"q"


class Heartbeat:
    """This process' end of the connections; a thread that runs from `start` to `stop`."""

    def __init__(self, on_lost: Callable[[str], None]) -> None:
        """
        Args:
            on_lost: called once, from the thread, with who is lost; must end the process.
        """
        self._on_lost = on_lost
        self._stop = threading.Event()
        self._selector = selectors.DefaultSelector()
        self._heard: dict[socket.socket, float] = {}
        self._names: dict[socket.socket, str] = {}
        self._server: socket.socket | None = None
        self._word = ""
        self._ear, self._mouth = socket.socketpair()
        """So that `stop` need not wait for the next beat."""
        self._selector.register(self._ear, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def listen(self, publish: Callable[[str], None]) -> None:
        """As rank 0: publish where, and the word by which the others make themselves known. A port scan is no peer."""
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        server = socket.create_server(("", 0), backlog=1024, family=family, dualstack_ipv6=dual)
        self._server = server
        self._word = secrets.token_hex(16)
        publish(f"{server.getsockname()[1]} {self._word}")
        self._selector.register(server, selectors.EVENT_READ)
        self._thread.start()

    def connect(self, host: str, published: str, rank: int) -> None:
        """As another rank: connect to rank 0.

        Raises:
            OSError: it is not there.
        """
        port, word = published.split()
        connection = socket.create_connection((host, int(port)), timeout=SILENCE)
        connection.sendall(f"{word} {rank}\n".encode())
        self._watch(connection, "rank 0")
        self._thread.start()

    def stop(self) -> None:
        """Say goodbye: from now on nobody misses us, and we miss nobody."""
        self._stop.set()
        self._mouth.send(BYE)
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(2 * EVERY)

    def _watch(self, connection: socket.socket, name: str) -> None:
        connection.setblocking(False)
        self._selector.register(connection, selectors.EVENT_READ)
        self._heard[connection], self._names[connection] = time.monotonic(), name

    def _run(self) -> None:
        lost = None
        due = time.monotonic()
        while lost is None and not self._stop.is_set():
            ready = [key.fileobj for key, _ in self._selector.select(max(due - time.monotonic(), 0.0))]
            if self._ear in ready:
                break
            lost = next(filter(None, (self._read(s) for s in ready if isinstance(s, socket.socket))), None)
            # By the clock, not in answer: two sides that answer each other never rest.
            if lost is None and time.monotonic() >= due:
                due = time.monotonic() + EVERY
                lost = self._silent() or self._beat(BEAT)
        if lost is None:
            self._beat(BYE)
        elif not self._stop.wait(GRACE):
            self._on_lost(lost)

    def _read(self, source: socket.socket) -> str | None:
        """Hear what has come; who is lost, if somebody is."""
        if source is self._server:
            stranger, _ = source.accept()
            stranger.setblocking(False)
            self._selector.register(stranger, selectors.EVENT_READ)
            return None
        if source not in self._heard:
            self._greet(source)
            return None
        try:
            data = source.recv(4096)
        except BlockingIOError:
            return None
        except OSError as error:
            return f"{self._names[source]} is gone: {error.strerror}"
        if BYE in data:
            self._forget(source)
            return None
        if not data:
            return f"{self._names[source]} is gone"
        self._heard[source] = time.monotonic()
        return None

    def _greet(self, stranger: socket.socket) -> None:
        """Take a peer in; whoever does not know the word is nobody. Nobody is waited for: silent strangers may be many."""
        try:
            word, _, rank = stranger.recv(256).split(b"\n")[0].decode(errors="replace").partition(" ")
        except OSError:
            word, rank = "", ""
        self._selector.unregister(stranger)
        if secrets.compare_digest(word.encode(), self._word.encode()):
            self._watch(stranger, f"rank {rank}")
        else:
            stranger.close()

    def _silent(self) -> str | None:
        now = time.monotonic()
        for connection, heard in self._heard.items():
            if now - heard > SILENCE:
                return f"{self._names[connection]} has not been heard of for {SILENCE:.0f} s"
        return None

    def _beat(self, word: bytes) -> str | None:
        for connection in list(self._heard):
            try:
                connection.send(word)
            except BlockingIOError:
                continue  # its buffer is full: it does not read, and its own beats tell
            except OSError as error:
                return f"{self._names[connection]} is gone: {error.strerror}"
        return None

    def _forget(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        connection.close()
        del self._heard[connection], self._names[connection]
