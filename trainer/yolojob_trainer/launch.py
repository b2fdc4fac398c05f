"""Launches a worker: `python -m yolojob_trainer.launch`.

torchrun maps every failure of its children to exit code 1. This launcher exits with the code of the root cause, because
the operator decides by it. It reads torchrun's variables: PET_NNODES, PET_NODE_RANK, PET_NPROC_PER_NODE,
PET_MASTER_ADDR, PET_MASTER_PORT. The members of an attempt never change, so a worker with a single process needs no
torchrun agent, which would import torch a second time.

The launcher is the first process of a container, to which the kernel delivers only signals that have a handler. The
trainer is its child, so that SIGTERM ends it even while it imports modules or waits for a peer inside torch.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from yolojob.api.constants import ENV_LAUNCHED, ENV_STARTED, RENDEZVOUS_PORT, ExitCode
from yolojob_trainer.system.process import available_cpus, process_start

MODULE = "yolojob_trainer"
ALLOCATOR = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in {"mmap_threshold": 1 << 32, "trim_threshold": 1 << 34, "hugetlb": 1}.items()
)
"""Keeps glibc from returning the memory of every large tensor to the kernel and requesting it again, zeroed, in the
next step: https://www.gnu.org/software/libc/manual/html_node/Memory-Allocation-Tunables.html. glibc reads it when a
process starts."""
_PRECEDENCE = (ExitCode.BAD_INPUT, ExitCode.FAILED, ExitCode.INTERRUPTED, ExitCode.PEER_LOST)


def single_process_environment(env: dict[str, str]) -> dict[str, str]:
    """Return the variables that torchrun would set for the only process of a node."""
    nodes, rank = env.get("PET_NNODES", "1"), env.get("PET_NODE_RANK", "0")
    return {
        "WORLD_SIZE": nodes,
        "RANK": rank,
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": env.get("PET_MASTER_ADDR", "127.0.0.1"),
        "MASTER_PORT": env.get("PET_MASTER_PORT", str(RENDEZVOUS_PORT)),
    }


def root_cause_exit_code(codes: list[int]) -> int:
    """Return one exit code for a worker whose processes ended with these: the code of the root cause."""
    unknown = [c for c in codes if c not in [*_PRECEDENCE, ExitCode.SUCCEEDED]]
    for code in _PRECEDENCE:
        if code in codes and not (unknown and code in (ExitCode.PEER_LOST, ExitCode.INTERRUPTED)):
            return code
    return _shell_exit_code(unknown[0]) if unknown else ExitCode.FAILED


def _shell_exit_code(code: int) -> int:
    """Return the exit code by the convention of shells and the kubelet: killed by signal 9 (-9) is 137."""
    return 128 - code if code < 0 else code


def main() -> int:
    """Run the trainer processes of this worker; return the exit code."""
    os.environ.setdefault("GLIBC_TUNABLES", ALLOCATOR)
    os.environ[ENV_STARTED] = str(process_start())
    if os.environ.get("PET_NPROC_PER_NODE", "1") == "1":
        return _run_single_process()
    return _run_torchrun()


def _run_single_process() -> int:
    """Start the only process, forward signals to it, and return its exit code."""
    environment = {**os.environ, **single_process_environment(dict(os.environ))}
    child = subprocess.Popen([sys.executable, "-m", MODULE], env=environment)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: child.send_signal(received))
    return _shell_exit_code(child.wait())


def _run_torchrun() -> int:
    """Start several processes with torchrun, and return the exit code of the root cause."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch
    from torch.distributed.run import config_from_args, parse_args

    processes = os.environ["PET_NPROC_PER_NODE"]
    os.environ.setdefault("OMP_NUM_THREADS", str(max(available_cpus() // int(processes), 1)))
    os.environ.setdefault("PET_MASTER_PORT", str(RENDEZVOUS_PORT))
    config, command, arguments = config_from_args(parse_args(["--module", MODULE]))  # type: ignore[no-untyped-call]
    os.environ[ENV_LAUNCHED] = str(time.time())
    try:
        elastic_launch(config, command)(*arguments)
    except ChildFailedError as error:
        return root_cause_exit_code([failure.exitcode for failure in error.failures.values()])
    except SignalException as error:
        return ExitCode.INTERRUPTED if error.sigval == signal.SIGTERM else 128 + error.sigval
    return ExitCode.SUCCEEDED


if __name__ == "__main__":
    sys.exit(main())
