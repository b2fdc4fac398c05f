"""Launches a worker: `python -m yolojob_trainer.launch`.

It starts the worker's trainer processes, connects them with those of the other workers (`distributed.store_proxy`), and
exits with the code of the root cause, because the operator decides by it. It reads torchrun's variables: PET_NNODES,
PET_NODE_RANK, PET_NPROC_PER_NODE, PET_MASTER_ADDR, PET_MASTER_PORT. It does not use torchrun: the agent of torchrun
imports torch once more, opens a store that accepts every connection, and maps every failure to exit code 1.

The launcher is the first process of a container, to which the kernel delivers only signals that have a handler. The
trainers are its children, so that SIGTERM ends them even while they import modules or wait for a peer inside torch.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from yolojob.api.constants import (
    ENV_RUN,
    ENV_SECRET_FILE,
    ENV_STARTED,
    ENV_STORE_FD,
    RENDEZVOUS_PORT,
    ExitCode,
)
from yolojob_trainer.distributed.store_proxy import LOOPBACK, ClientProxy, ServerProxy, attempt_key
from yolojob_trainer.system.process import available_cpus, process_start

MODULE = "yolojob_trainer"
ALLOCATOR = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in {"mmap_threshold": 1 << 32, "trim_threshold": 1 << 34, "hugetlb": 1}.items()
)
"""Keeps glibc from returning the memory of every large tensor to the kernel and requesting it again, zeroed, in the
next step: https://www.gnu.org/software/libc/manual/html_node/Memory-Allocation-Tunables.html. glibc reads it when a
process starts."""
SPINS = 10_000
"""Turns in which a thread of OpenMP waits actively for the others, after which it sleeps. With the default of libgomp,
300,000, a thread keeps its core for milliseconds while the thread that it waits for cannot run, for every operator:
https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html. Measured in docs/benchmarks.md."""
_PRECEDENCE = (ExitCode.BAD_INPUT, ExitCode.FAILED, ExitCode.INTERRUPTED, ExitCode.PEER_LOST)
PEER_EXIT_SECONDS = 10.0
"""Time for the other processes of a worker to notice that one has failed, and to end by themselves."""
STOP_SECONDS = 30.0
"""Time for a process to end after SIGTERM."""


@dataclass(frozen=True, kw_only=True)
class Gang:
    """The place of this worker among all workers of the attempt."""

    nodes: int
    node_rank: int
    processes: int
    """Processes of each worker."""
    host: str
    """Address of worker 0."""
    port: int
    """Port of worker 0's server proxy; not used if there is only one worker."""

    @classmethod
    def from_env(cls, env: dict[str, str]) -> Self:
        """Read torchrun's variables; without them, the gang is one process."""
        return cls(
            nodes=int(env.get("PET_NNODES", "1")),
            node_rank=int(env.get("PET_NODE_RANK", "0")),
            processes=int(env.get("PET_NPROC_PER_NODE", "1")),
            host=env.get("PET_MASTER_ADDR", LOOPBACK),
            port=int(env.get("PET_MASTER_PORT", str(RENDEZVOUS_PORT))),
        )

    def environment(self, local_rank: int, store_port: int) -> dict[str, str]:
        """The variables of one process.

        Args:
            local_rank: of the process.
            store_port: port of this machine at which the store is reached.
        """
        variables = {
            "WORLD_SIZE": str(self.nodes * self.processes),
            "RANK": str(self.node_rank * self.processes + local_rank),
            "LOCAL_RANK": str(local_rank),
            "LOCAL_WORLD_SIZE": str(self.processes),
            "MASTER_ADDR": LOOPBACK,
            "MASTER_PORT": str(store_port),
        }
        if self.processes > 1:
            variables["OMP_NUM_THREADS"] = str(max(available_cpus() // self.processes, 1))
        return variables


def root_cause_exit_code(codes: list[int]) -> int:
    """Return one exit code for a worker whose processes ended with these: that of the root cause of a failure."""
    if not any(codes):
        return ExitCode.SUCCEEDED
    unknown = [c for c in codes if c not in [*_PRECEDENCE, ExitCode.SUCCEEDED]]
    for code in _PRECEDENCE:
        if code in codes and not (unknown and code in (ExitCode.PEER_LOST, ExitCode.INTERRUPTED)):
            return code
    return _shell_exit_code(unknown[0]) if unknown else ExitCode.FAILED


def _shell_exit_code(code: int) -> int:
    """Return the exit code by the convention of shells and the kubelet: killed by signal 9 (-9) is 137."""
    return 128 - code if code < 0 else code


class SetupError(Exception):
    """The processes cannot be connected. The message says why."""


def main() -> int:
    """Run the trainer processes of this worker; return the exit code."""
    os.environ[ENV_STARTED] = str(process_start())
    try:
        return asyncio.run(_run(Gang.from_env(dict(os.environ))))
    except SetupError as error:
        print(f"yolojob: {error}", file=sys.stderr, flush=True)  # noqa: T201
        return ExitCode.BAD_INPUT


async def _run(gang: Gang) -> int:
    children: list[asyncio.subprocess.Process] = []
    received: list[signal.Signals] = []

    def forward(number: signal.Signals) -> None:
        received.append(number)
        _send_to_all(children, number)

    # First of all: the kernel drops signals to the first process of a container that have no handler.
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, forward, number)
    async with _store(gang) as (port, listening):
        for rank in range(gang.processes):
            if received:
                break
            children.append(await _start(gang, rank, port, listening))
        if received:
            _send_to_all(children, received[0])
        if listening:
            listening.close()  # or it would outlive the store
        return root_cause_exit_code(await _wait(children)) if children else ExitCode.INTERRUPTED


@asynccontextmanager
async def _store(gang: Gang) -> AsyncIterator[tuple[int, socket.socket | None]]:
    """Make the store reachable for this worker's processes.

    Yields:
        The port at which they reach it, and on worker 0 the socket at which the store is to listen.

    Raises:
        SetupError: there are several workers, and no secret.
    """
    if gang.node_rank > 0:
        proxy = ClientProxy(_key(), gang.host, gang.port)
        opening = asyncio.ensure_future(proxy.open())
        try:
            yield proxy.port, None
        finally:
            opening.cancel()
        return
    with socket.socket() as listening:
        listening.bind((LOOPBACK, 0))
        port = listening.getsockname()[1]
        server = await _open_server_proxy(gang, port) if gang.nodes > 1 else None
        try:
            yield port, listening
        finally:
            if server:
                server.close()


async def _open_server_proxy(gang: Gang, store_port: int) -> asyncio.Server:
    key = _key()
    try:
        return await ServerProxy(key, store_port).open(gang.port)
    except OSError as error:
        raise SetupError(f"PET_MASTER_PORT: {gang.port}: {error.strerror}") from None


def _key() -> bytes:
    path = os.environ.get(ENV_SECRET_FILE)
    if not path:
        raise SetupError(
            f"{ENV_SECRET_FILE} is not set: several workers need a common secret; the operator sets it, so it must be "
            "as new as this image; without the operator, write 32 random bytes to a file that all workers can read"
        )
    attempt = json.loads(os.environ.get(ENV_RUN) or "{}").get("attempt", 1)
    try:
        return attempt_key(Path(path), int(attempt))
    except (OSError, ValueError) as error:
        raise SetupError(f"{ENV_SECRET_FILE}: {error}") from None


def runtime_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables for glibc and libgomp that trainer processes get in addition to their environment."""
    settings = {"GLIBC_TUNABLES": ALLOCATOR}
    if "OMP_WAIT_POLICY" not in environment:  # libgomp ignores it if it has a number of turns
        settings["GOMP_SPINCOUNT"] = str(SPINS)
    return {name: value for name, value in settings.items() if name not in environment}


async def _start(
    gang: Gang, local_rank: int, store_port: int, listening: socket.socket | None
) -> asyncio.subprocess.Process:
    environment = {**os.environ, **runtime_settings(os.environ), **gang.environment(local_rank, store_port)}
    inherited: tuple[int, ...] = ()
    if listening is not None and local_rank == 0:
        inherited = (listening.fileno(),)
        environment[ENV_STORE_FD] = str(listening.fileno())
    return await asyncio.create_subprocess_exec(sys.executable, "-m", MODULE, env=environment, pass_fds=inherited)


async def _wait(children: list[asyncio.subprocess.Process]) -> list[int]:
    """Wait until all processes have ended. After a failure the others are stopped, if they do not end by themselves.

    Returns:
        The exit codes of those that were not stopped.
    """
    tasks = [asyncio.ensure_future(child.wait()) for child in children]
    running = set(tasks)
    while running:
        done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        if any(task.result() for task in done):
            break
    if running:
        await asyncio.wait(running, timeout=PEER_EXIT_SECONDS)
    codes = [task.result() for task in tasks if task.done()]
    for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, None)):
        if stuck := [task for task in tasks if not task.done()]:
            _send_to_all(children, number)
            await asyncio.wait(stuck, timeout=seconds)
    return codes


def _send_to_all(children: list[asyncio.subprocess.Process], number: signal.Signals) -> None:
    for child in children:
        with suppress(ProcessLookupError):
            if child.returncode is None:
                child.send_signal(number)


if __name__ == "__main__":
    sys.exit(main())
