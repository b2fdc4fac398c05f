"""The launcher: two workers that connect through the proxies of the store, and the exit code of its processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import eventually
from support.processes import free_port, tiny
from yolojob_trainer import launch
from yolojob_trainer.launch import Gang

from yolojob.api.constants import ExitCode
from yolojob.api.trainer_report import Report, TrainerState

pytestmark = pytest.mark.processes

SECRET = bytes(range(32))
CHILD = """import os, signal, sys
rank = int(os.environ["LOCAL_RANK"])
def hang():
    while True:
        signal.pause()
"""
"""First lines of the scripts that stand for the trainer."""


class Workers:
    """Launchers of the workers of one attempt, on this machine."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.cache, self.port = folder, cache, free_port()

    def start(self, node: int, secret: bytes | None = SECRET) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "YOLOJOB_RUN": tiny(replicas=2, train={"epochs": 1}).to_env(),
            "YOLOJOB_OUTPUT_DIR": str(self.folder / f"out-{node}"),
            "YOLOJOB_CACHE_DIR": str(self.cache),
            "YOLOJOB_TERMINATION_LOG": str(self.folder / f"final-{node}"),
            "YOLOJOB_METRICS_PORT": "0",
            "YOLOJOB_CPUS": "1",
            "OMP_NUM_THREADS": "1",
            "PET_NNODES": "2",
            "PET_NODE_RANK": str(node),
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": str(self.port),
        }
        if secret is not None:
            file = self.folder / f"secret-{node}"
            file.write_bytes(secret)
            environment["YOLOJOB_SECRET_FILE"] = str(file)
        log = (self.folder / f"log-{node}").open("wb")
        command = [sys.executable, "-m", "yolojob_trainer.launch"]
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


@pytest.fixture
def workers(tmp_path: Path, cache: Path) -> Workers:
    return Workers(tmp_path, cache)


def test_two_workers_find_each_other_and_train(workers: Workers) -> None:
    processes = [workers.start(node) for node in (0, 1)]
    codes = [process.wait(600) for process in processes]
    assert codes == [0, 0], (workers.folder / "log-0").read_text()[-3000:]
    report = Report.model_validate_json((workers.folder / "final-0").read_text())
    assert (report.state, report.world_size) == (TrainerState.SUCCEEDED, 2)


def test_worker_with_another_secret_does_not_join(workers: Workers) -> None:
    """Both wait, until somebody stops them."""
    first, second = workers.start(0), workers.start(1, b"x" * 32)
    try:
        log = workers.folder / "log-1"
        eventually(lambda: b"worker 0 is not reachable: 127.0.0.1 has closed" in log.read_bytes(), "it is refused", 120)
        assert (first.poll(), second.poll()) == (None, None)
    finally:
        for process in (first, second):
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == ExitCode.INTERRUPTED


@pytest.mark.parametrize("secret", [None, b"short"])
def test_several_workers_without_a_secret_are_bad_input(workers: Workers, secret: bytes | None) -> None:
    assert workers.start(0, secret).wait(120) == ExitCode.BAD_INPUT
    assert "YOLOJOB_SECRET_FILE" in (workers.folder / "log-0").read_text()


def run(script: str, processes: int, monkeypatch: pytest.MonkeyPatch, folder: Path) -> int:
    """Launches processes that run this script, with their rank in the variable `rank`."""
    module = folder / "child.py"
    module.write_text(f"{CHILD}\n{script}\n")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setattr(launch, "MODULE", "child")
    monkeypatch.setattr(launch, "PEER_EXIT_SECONDS", 1.0)
    monkeypatch.setattr(launch, "STOP_SECONDS", 1.0)
    gang = Gang.from_env({"PET_NPROC_PER_NODE": str(processes)})
    return asyncio.run(launch._run(gang))  # noqa: SLF001 - `main` is the same in a process of its own


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("sys.exit(0)", 0),
        ("sys.exit(76 if rank else 1)", 1),
        ("sys.exit(2 if rank else 76)", 2),
        ("rank or sys.exit(1); hang()", 1),
        ("rank or sys.exit(1); signal.signal(signal.SIGTERM, signal.SIG_IGN); hang()", 1),
        ("rank or os.kill(os.getpid(), 9); sys.exit(76)", 137),
    ],
)
def test_exit_code_is_that_of_the_root_cause_and_nobody_stays(
    script: str, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert run(script, 2, monkeypatch, tmp_path) == code


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, str(launch.SPINS)), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, None)],
    ids=str,
)
def test_threads_wait_actively_for_a_limited_time_unless_the_user_says_otherwise(
    given: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    script = f"sys.exit(0 if os.environ.get('GOMP_SPINCOUNT') == {expected!r} else 1)"
    assert run(script, 1, monkeypatch, tmp_path) == 0
