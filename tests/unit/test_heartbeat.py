"""The heartbeat between two ranks of one process, on a clock that the test sets."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from support import eventually
from yolojob_trainer.distributed import heartbeat
from yolojob_trainer.distributed.heartbeat import BEAT, GOODBYE, Heartbeat

pytestmark = pytest.mark.processes

INTERVAL, TIMEOUT = 0.05, 15.0
"""Seconds. The thread waits INTERVAL in real time before it looks at the clock again."""


class Clock:
    """A clock that moves only when the test moves it."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(heartbeat, "time", SimpleNamespace(monotonic=clock.monotonic))
    monkeypatch.setattr(heartbeat, "BEAT_INTERVAL_SECONDS", INTERVAL)
    monkeypatch.setattr(heartbeat, "HEARTBEAT_TIMEOUT_SECONDS", TIMEOUT)
    monkeypatch.setattr(heartbeat, "ROOT_CAUSE_GRACE_SECONDS", INTERVAL)
    return clock


class Relay:
    """Forwards one connection to a port of this machine and keeps what each side has sent."""

    def __init__(self, port: int) -> None:
        self.from_peer, self.from_main = bytearray(), bytearray()
        self.closed_by_main = threading.Event()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._main = socket.create_connection(("127.0.0.1", port))
        self._connections = [self._main]
        threading.Thread(target=self._forward, daemon=True).start()

    def _forward(self) -> None:
        peer, _ = self._server.accept()
        self._connections.append(peer)
        with selectors.DefaultSelector() as selector:
            selector.register(peer, selectors.EVENT_READ, (self._main, self.from_peer))
            selector.register(self._main, selectors.EVENT_READ, (peer, self.from_main))
            while True:
                for key, _ in selector.select():
                    source, (target, log) = key.fileobj, key.data
                    assert isinstance(source, socket.socket)
                    try:
                        data = source.recv(4096)
                        target.sendall(data)
                    except OSError:
                        return
                    log += data
                    if not data:
                        if source is self._main:
                            self.closed_by_main.set()
                        return

    def cut(self) -> None:
        """Cut the connection on both sides."""
        for connection in self._connections:
            connection.shutdown(socket.SHUT_RDWR)


class Pair:
    """Rank 0 and rank 1, connected through a relay."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.ticks = 0
        """How many times the clock was moved while both sides were connected."""
        self.lost: list[str] = []
        published: list[str] = []
        self.main, self.peer = Heartbeat(self.lost.append), Heartbeat(self.lost.append)
        self.main.listen(published.append, "127.0.0.1")
        port, token = published[0].split()
        self.port = int(port)
        self.relay = Relay(self.port)
        self.peer.connect("127.0.0.1", f"{self.relay.port} {token}", 1)
        eventually(lambda: self.main.peers, "rank 0 has accepted rank 1")
        self.tick()

    def beats(self) -> tuple[int, int]:
        """Beats that (rank 0, rank 1) have sent."""
        greeting, newline, beats = bytes(self.relay.from_peer).partition(b"\n")
        assert newline or not greeting
        return self.relay.from_main.count(BEAT), beats.count(BEAT)

    def tick(self, seconds: float = INTERVAL) -> None:
        """Let time pass until the next beat is due, and wait for the beats of both sides."""
        before = self.beats()
        self.ticks += 1
        self.clock.now += seconds
        eventually(
            lambda: all(now > then for now, then in zip(self.beats(), before, strict=True)),
            "both sides beat",
            every=0.01,
        )

    def stop(self) -> None:
        self.peer.stop()
        self.main.stop()


@pytest.fixture
def pairs(clock: Clock) -> Iterator[Callable[[], Pair]]:
    """Makes connected pairs, and stops them at the end."""
    created: list[Pair] = []

    def connect() -> Pair:
        created.append(Pair(clock))
        return created[-1]

    yield connect
    for pair in created:
        pair.stop()


def test_heartbeat_between_two_ranks_beats_by_the_clock_and_not_in_answer(pairs: Callable[[], Pair]) -> None:
    """Sides that answered each other's beats would keep two cores busy."""
    pair = pairs()
    for _ in range(10):
        pair.tick()
    pair.stop()
    eventually(lambda: GOODBYE in pair.relay.from_peer, "rank 1 has said goodbye")
    assert all(pair.ticks <= beats <= pair.ticks + 1 for beats in pair.beats()), "one each time, and one at the start"
    assert not pair.lost


def test_heartbeat_after_a_goodbye_does_not_report_the_peer(pairs: Callable[[], Pair], clock: Clock) -> None:
    pair = pairs()
    pair.peer.stop()
    assert pair.relay.closed_by_main.wait(30), "rank 0 has not closed the connection after the goodbye"
    eventually(lambda: not pair.main.peers, "rank 0 has forgotten rank 1")
    clock.now += 2 * TIMEOUT
    pair.main.stop()
    assert not pair.lost


def test_heartbeat_of_a_closed_connection_reports_the_peer_on_both_sides(pairs: Callable[[], Pair]) -> None:
    pair = pairs()
    pair.relay.cut()
    eventually(lambda: len(pair.lost) == 2, "both sides notice")
    assert sorted(message.split(" is ")[0] for message in pair.lost) == ["rank 0", "rank 1"]


def test_heartbeat_of_a_silent_peer_reports_it_after_the_timeout(clock: Clock) -> None:
    lost: list[str] = []
    published: list[str] = []
    main = Heartbeat(lost.append)
    main.listen(published.append, "127.0.0.1")
    port, token = published[0].split()
    with socket.create_connection(("127.0.0.1", int(port))) as silent:
        silent.sendall(f"{token} 7\n".encode())
        eventually(lambda: main.peers, "the peer is accepted")
        clock.now += TIMEOUT
        assert silent.recv(1) == BEAT, "a peer is reported before the timeout"
        assert not lost
        clock.now += INTERVAL
        eventually(lambda: lost, "the silence is noticed")
    assert lost == ["rank 7 has sent no heartbeat for 15 s"]


def test_heartbeat_with_connections_without_the_token_ignores_them(pairs: Callable[[], Pair]) -> None:
    pair = pairs()
    for data in (b"", b"GET / HTTP/1.0\r\n\r\n", b"wrong 1\n"):
        with socket.create_connection(("127.0.0.1", pair.port)) as stranger:
            stranger.sendall(data)
            stranger.shutdown(socket.SHUT_WR)
            assert stranger.recv(1) == b"", "a connection without the token gets no answer and is closed"
    pair.tick()
    assert len(pair.main.peers) == 1
    assert not pair.lost


def test_heartbeat_with_many_silent_connections_keeps_beating(pairs: Callable[[], Pair]) -> None:
    """Thirty connections that send nothing and stay open, for longer than the timeout."""
    pair = pairs()
    strangers = [socket.create_connection(("127.0.0.1", pair.port)) for _ in range(30)]
    for _ in range(30):
        pair.tick(TIMEOUT / 10)
    assert not pair.lost
    for stranger in strangers:
        stranger.close()
