"""A worker's first process: `python -m yolojob_trainer.launch`.

torchrun answers every failure of its children with exit code 1. Here the cause's own code comes out, which is what the
operator decides by. The environment is torchrun's: PET_NNODES, PET_NODE_RANK, PET_NPROC_PER_NODE, PET_MASTER_ADDR,
PET_MASTER_PORT. One attempt is one fixed membership, so a worker with a single process needs no agent, and no second torch.

It is the first process of a container, to which the kernel delivers no signal without a handler. The trainer is its child,
so that SIGTERM ends it also while it is importing, or waiting for a peer somewhere inside of torch.
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
"""Keeps glibc from giving the memory of every large tensor back to the kernel and asking for it, zeroed, in the next
step: https://www.gnu.org/software/libc/manual/html_node/Memory-Allocation-Tunables.html. Read when a process starts."""
_SERIOUSNESS = (ExitCode.BAD_INPUT, ExitCode.FAILED, ExitCode.INTERRUPTED, ExitCode.PEER_LOST)


def single_process_environment(env: dict[str, str]) -> dict[str, str]:
    """What torchrun would tell the only process of a node."""
    nodes, rank = env.get("PET_NNODES", "1"), env.get("PET_NODE_RANK", "0")
    return {
        "WORLD_SIZE": nodes,
        "RANK": rank,
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": env.get("PET_MASTER_ADDR", "127.0.0.1"),
        "MASTER_PORT": env.get("PET_MASTER_PORT", str(RENDEZVOUS_PORT)),
    }


def verdict(codes: list[int]) -> int:
    """One exit code for a worker whose processes ended with these: the cause's, not the survivors'."""
    unknown = [c for c in codes if c not in [*_SERIOUSNESS, ExitCode.SUCCEEDED]]
    for code in _SERIOUSNESS:
        if code in codes and not (unknown and code in (ExitCode.PEER_LOST, ExitCode.INTERRUPTED)):
            return code
    # Killed by a signal: -9 is 137, as a shell and the kubelet say it.
    return 128 - unknown[0] if unknown and unknown[0] < 0 else unknown[0] if unknown else ExitCode.FAILED


def main() -> int:
    os.environ.setdefault("GLIBC_TUNABLES", ALLOCATOR)
    os.environ[ENV_STARTED] = str(process_start())
    if os.environ.get("PET_NPROC_PER_NODE", "1") == "1":
        return _follow()
    return _supervise()


def _follow() -> int:
    """Start the only process, hand signals on to it, and end as it does."""
    environment = {**os.environ, **single_process_environment(dict(os.environ))}
    child = subprocess.Popen([sys.executable, "-m", MODULE], env=environment)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: child.send_signal(received))
    code = child.wait()
    return 128 - code if code < 0 else code  # killed by a signal: -9 is 137


def _supervise() -> int:
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
        return verdict([failure.exitcode for failure in error.failures.values()])
    except SignalException as error:
        return ExitCode.INTERRUPTED if error.sigval == signal.SIGTERM else 128 + error.sigval
    return ExitCode.SUCCEEDED


if __name__ == "__main__":
    sys.exit(main())
