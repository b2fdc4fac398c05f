"""The heartbeat by itself: what it notices, and what it costs."""

from __future__ import annotations

import socket
import threading
import time

import pytest
from support import eventually
from yolojob_trainer.distributed import heartbeat
from yolojob_trainer.distributed.heartbeat import Heartbeat


class Pair:
    """Rank 0 and rank 1 in one process."""

    def __init__(self) -> None:
        self.lost: list[str] = []
        where: list[str] = []
        self.main, self.peer = Heartbeat(self.lost.append), Heartbeat(self.lost.append)
        self.main.listen(where.append)
        self.where = where[0]
        self.peer.connect("127.0.0.1", self.where, 1)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "EVERY", 0.1)
    monkeypatch.setattr(heartbeat, "SILENCE", 1.0)
    monkeypatch.setattr(heartbeat, "GRACE", 0.1)


def test_two_sides_are_quiet_together() -> None:
    """Ten beats a second from each, not an answer to every answer."""
    pair = Pair()
    began = time.thread_time_ns(), time.process_time()
    deadline = time.monotonic() + 2.0
    while time.monotonic() < deadline:
        assert not pair.lost
        threading.Event().wait(0.1)
    assert time.process_time() - began[1] < 0.2, "a tenth of one core at most, for both"
    pair.peer.stop()
    pair.main.stop()
    assert not pair.lost


def test_a_peer_that_says_goodbye_is_not_missed() -> None:
    pair = Pair()
    eventually(lambda: pair.main._heard, "the peer is known", 5)
    pair.peer.stop()
    eventually(lambda: not pair.main._heard, "the goodbye is heard", 5)
    pair.main.stop()
    assert not pair.lost


def test_a_peer_that_is_gone_is_named() -> None:
    pair = Pair()
    eventually(lambda: pair.main._heard, "the peer is known", 5)
    for connection in list(pair.peer._heard):
        connection.shutdown(socket.SHUT_RDWR)
    eventually(lambda: len(pair.lost) == 2, "both sides notice", 5)
    assert sorted(words.split(" is ")[0] for words in pair.lost) == ["rank 0", "rank 1"]


def test_a_peer_that_is_silent_is_named() -> None:
    lost: list[str] = []
    where: list[str] = []
    main = Heartbeat(lost.append)
    main.listen(where.append)
    port, word = where[0].split()
    silent = socket.create_connection(("127.0.0.1", int(port)))
    silent.sendall(f"{word} 7\n".encode())
    eventually(lambda: lost, "the silence is noticed", 5)
    assert lost[0].startswith("rank 7 has not been heard of")
    silent.close()


def test_strangers_are_nobody() -> None:
    pair = Pair()
    port = int(pair.where.split()[0])
    for words in (b"", b"GET / HTTP/1.0\r\n\r\n", b"wrong 1\n"):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(words)
    eventually(lambda: pair.main._heard, "the peer is known", 5)
    threading.Event().wait(0.5)
    assert not pair.lost
    pair.peer.stop()
    pair.main.stop()


def test_silent_strangers_hold_nobody_up() -> None:
    """Thirty connections that say nothing, and do not go away: the beats go on."""
    pair = Pair()
    eventually(lambda: pair.main._heard, "the peer is known", 5)
    port = int(pair.where.split()[0])
    strangers = [socket.create_connection(("127.0.0.1", port)) for _ in range(30)]
    threading.Event().wait(2 * heartbeat.SILENCE)
    assert not pair.lost
    pair.peer.stop()
    pair.main.stop()
    for stranger in strangers:
        stranger.close()
