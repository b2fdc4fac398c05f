"""`LocalRun`: the trainer's processes on this machine, as the command line sees them."""

from __future__ import annotations

import socket
import sys
import threading
from pathlib import Path

import pytest
from support import minimal

from yolojob.api.job import YoloTrainingJob
from yolojob.client import local_run
from yolojob.client.local_run import LocalRun, Places

pytestmark = pytest.mark.processes


def test_progress_with_incomplete_response_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer may end while it sends its report."""
    job = YoloTrainingJob.model_validate(minimal())
    run = LocalRun(job, Places(runs=tmp_path / "runs", volumes=tmp_path / "volumes", cache=tmp_path / "cache"))
    with socket.create_server(("127.0.0.1", 0)) as server:

        def respond() -> None:
            connection, _ = server.accept()
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 203\r\n\r\n")
            connection.close()

        responding = threading.Thread(target=respond)
        responding.start()
        monkeypatch.setattr(local_run, "_free_ports", lambda count: server.getsockname()[1])
        monkeypatch.setattr(sys, "executable", "/bin/true")  # in place of the trainer
        run.start()
        assert run.progress() is None
        responding.join()
    run.wait(10)
    run.close(0)
