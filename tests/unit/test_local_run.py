"""The run on this machine, seen from its terminal."""

from __future__ import annotations

import socket
import threading

from yolojob.client.local_run import LocalRun


def test_a_trainer_that_ends_in_the_middle_of_its_answer_has_said_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 203\r\n\r\n")
            connection.close()

        dying = threading.Thread(target=answer)
        dying.start()
        run = LocalRun.__new__(LocalRun)
        run._port = server.getsockname()[1]
        assert run.progress() is None
        dying.join()
