"""Starts Python processes by forking one that has imported torch: a fresh interpreter takes five CPU seconds for that.

Only libraries are imported ahead, and none that reads a worker's environment at import time. Ultralytics (RANK,
YOLO_CONFIG_DIR) and the code under test are imported by each process itself, with its own environment variables. The
server has a single thread, so no lock is held and no thread is lost when it forks. Processes have their own pid,
output, exit code and start time, and can be stopped and killed one by one.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

PRELOADED = (
    "torch",
    "torch._inductor.config",
    "torch.distributed",
    "torchvision",
    "cv2",
    "matplotlib",
    "matplotlib.pyplot",
    "numpy",
    "psutil",
    "pydantic",
    "requests",
    "s3fs",
)
IMPORT_TIMEOUT_SECONDS = 120.0
MAX_MESSAGE_BYTES = 1 << 17
TESTS = Path(__file__).parent.parent


class ForkedProcess:
    """A process that the server has started, with the interface of `subprocess.Popen`."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self._server = server
        self.pid = pid

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while the process runs."""
        self._server.receive()
        return self._server.exit_codes.get(self.pid)

    def wait(self, timeout: float = 240.0) -> int:
        """Wait for the process to end; its exit code.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            self._server.receive(remaining)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal; nothing happens if the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """A process that has imported the libraries, and the connection to it."""

    def __init__(self) -> None:
        """Start the server and wait for its imports."""
        self.exit_codes: dict[int, int] = {}
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1",  # read when torch is loaded
            "OPENBLAS_NUM_THREADS": "1",  # otherwise numpy starts threads at import time
        }
        program = f"from support.fork_server import serve; serve({theirs.fileno()})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", program], env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
        )
        theirs.close()
        self._connection.settimeout(IMPORT_TIMEOUT_SECONDS)
        self._read()

    def start(self, target: str, arguments: list[str], environment: dict[str, str], output: Path) -> ForkedProcess:
        """Start a process.

        Args:
            target: `module:function`, imported and called in the new process.
            arguments: `sys.argv` after the program's name.
            environment: all its environment variables.
            output: file for stdout and stderr.
        """
        self.receive()
        request = {"target": target, "arguments": arguments, "environment": environment, "output": str(output)}
        self._connection.settimeout(IMPORT_TIMEOUT_SECONDS)
        self._connection.send(json.dumps(request).encode())
        while "started" not in (message := self._read()):
            self.exit_codes[message["pid"]] = message["code"]
        return ForkedProcess(self, message["started"])

    def receive(self, seconds: float = 0.0) -> None:
        """Take the exit codes that have arrived; if there are none, wait for the next one for this long."""
        while True:
            self._connection.settimeout(seconds)
            try:
                message = self._read()
            except (BlockingIOError, TimeoutError):
                return
            self.exit_codes[message["pid"]] = message["code"]
            seconds = 0.0

    def stop(self) -> None:
        """End the server; processes that still run are killed."""
        self._connection.close()
        self._process.wait()

    def _read(self) -> dict[str, int]:
        data = self._connection.recv(MAX_MESSAGE_BYTES)
        assert data, "the fork server has ended"
        message: dict[str, int] = json.loads(data)
        return message


def serve(descriptor: int) -> None:
    """Run the server until its client closes the connection."""
    for name in PRELOADED:
        importlib.import_module(name)
    threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208
    assert threads == 1, f"forking is only safe with one thread, and the imports have started {threads - 1}"
    gc.collect()
    gc.freeze()
    connection = socket.socket(fileno=descriptor)
    connection.send(json.dumps({}).encode())
    selector = selectors.DefaultSelector()
    selector.register(connection, selectors.EVENT_READ)
    children: dict[int, int] = {}
    """pid by pidfd"""
    try:
        while True:
            for key, _ in selector.select():
                if key.fileobj is not connection:
                    selector.unregister(key.fileobj)
                    os.close(key.fd)
                    pid, status = os.waitpid(children.pop(key.fd), 0)
                    message = {"pid": pid, "code": os.waitstatus_to_exitcode(status)}
                elif request := connection.recv(MAX_MESSAGE_BYTES):
                    pid = os.fork()
                    if pid == 0:
                        selector.close()
                        connection.close()
                        _run(**json.loads(request))
                    child = os.pidfd_open(pid)
                    selector.register(child, selectors.EVENT_READ)
                    children[child] = pid
                    message = {"started": pid}
                else:
                    return
                connection.send(json.dumps(message).encode())
    except BrokenPipeError:
        pass
    finally:
        for pid in children.values():
            os.kill(pid, signal.SIGKILL)
        os._exit(0)  # the libraries' destructors print warnings


def _run(target: str, arguments: list[str], environment: dict[str, str], output: str) -> None:
    """Be the new process; does not return."""
    code = 1
    try:
        log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.clear()
        os.environ.update(environment)
        module, _, name = target.partition(":")
        sys.argv = [target, *arguments]
        import numpy as np

        np.random.seed()  # as a fresh process; random and torch do this themselves
        main: Callable[[], int | None] = getattr(importlib.import_module(module), name)
        code = main() or 0
    except BaseException:  # noqa: BLE001 - reported in the log, as an interpreter does at its end
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
