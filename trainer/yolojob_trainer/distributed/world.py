"""The distributed world: ranks, devices, process groups, and synchronous communication among all ranks."""

from __future__ import annotations

import math
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore
from torch.distributed.distributed_c10d import _get_default_store

from yolojob.api import constants
from yolojob.api.reasons import Reason
from yolojob.api.spec import Gpu
from yolojob_trainer.distributed.heartbeat import Heartbeat
from yolojob_trainer.distributed.store_proxy import LOOPBACK
from yolojob_trainer.errors import BadInput, Interrupted, PeerLost, TrainerError
from yolojob_trainer.system.process import available_cpus
from yolojob_trainer.system.torch_patches import forbid_object_collectives

COLLECTIVE_TIMEOUT = timedelta(minutes=10)
"""A collective that takes longer has lost a rank. Ultralytics waits three hours."""
CONNECT_POLL_SECONDS, BARRIER_POLL_SECONDS = 0.1, 0.05
"""Intervals between two attempts to connect, and between two looks at the key-value store."""


def _connect_store(rank: int, world_size: int) -> TCPStore:
    """Return the key-value store of all ranks. Rank 0 serves it, on the loopback address only: see `store_proxy`.

    Raises:
        PeerLost: rank 0 does not serve it in time.
    """
    port = int(os.environ["MASTER_PORT"])
    listening = None
    if rank == 0:
        inherited = os.environ.get(constants.ENV_STORE_FD)
        listening = int(inherited) if inherited else socket.create_server((LOOPBACK, port)).detach()
    else:
        wait_for_port(port, COLLECTIVE_TIMEOUT.total_seconds())
    return TCPStore(
        LOOPBACK,
        port,
        world_size,
        is_master=rank == 0,
        timeout=COLLECTIVE_TIMEOUT,
        wait_for_workers=False,
        master_listen_fd=listening,
    )


def _rank0_host() -> str:
    """Return the address of rank 0 as this worker sees it."""
    return os.environ.get("PET_MASTER_ADDR", LOOPBACK)


def wait_for_port(port: int, seconds: float) -> None:
    """Wait until the store is reachable at this port of the loopback address.

    Raises:
        PeerLost: it is not reachable in time.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            with socket.create_connection((LOOPBACK, port), timeout=1.0):
                return
        except OSError as error:
            if time.monotonic() > deadline:
                raise PeerLost(
                    Reason.PEER_LOST, f"worker 0 ({_rank0_host()}) is not reachable after {seconds:.0f} s: {error}"
                ) from None
            time.sleep(CONNECT_POLL_SECONDS)


def wait_for_ranks(store: Any, key: Callable[[int], str], world_size: int, seconds: float = math.inf) -> None:
    """Wait until every rank has set its key. It polls: Python's signal handlers do not run inside a blocking `get`.

    Args:
        store: the key-value store of all ranks.
        key: returns the key of a rank.
        world_size: number of ranks.
        seconds: timeout.

    Raises:
        PeerLost: some ranks have not set theirs in time.
    """
    deadline = time.monotonic() + seconds
    missing = list(range(world_size))
    while missing := [rank for rank in missing if not store.check([key(rank)])]:
        if time.monotonic() > deadline:
            names = ", ".join(map(str, missing))
            raise PeerLost(Reason.PEER_LOST, f"rank(s) {names} have not connected after {seconds:.0f} s")
        time.sleep(BARRIER_POLL_SECONDS)


def _missing_gpus(needed: int, found: int) -> TrainerError:
    """Return the error for a worker with fewer GPUs than processes.

    In a pod without any GPU the node is to blame: the scheduler has found one there. Another attempt may get another
    node. With some, but too few, the request is wrong.
    """
    message = f"spec.workers.gpu: {needed} process(es) need one GPU each, but this machine has {found}"
    if not found and os.environ.get("KUBERNETES_SERVICE_HOST"):
        return TrainerError(Reason.NO_WORKING_GPU, f"{message} that works: {_cuda_error()}")
    return BadInput(
        Reason.NOT_ENOUGH_GPUS,
        f"{message}; set spec.workers.gpu.required: false to train on the CPU, or leave spec.workers.gpu out",
    )


def _cuda_error() -> str:
    """Return why CUDA cannot be used here, in torch's words."""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return " ".join(str(error).split())[:500]
    return "torch finds no device"


def check_capability(capability: tuple[int, int], architectures: list[str], index: int) -> None:
    """Check that torch has kernels for a GPU.

    Args:
        capability: compute capability of the GPU.
        architectures: those that this version of torch was built for, such as sm_80 and compute_120.
        index: of the GPU, for the message.

    Raises:
        BadInput: it has none; the first kernel would fail.
    """
    major, minor = capability
    built = [(int(name[:-1]), int(name[-1])) for name in re.findall(r"sm_(\d+)", " ".join(architectures))]
    # Kernels run on GPUs of the same major version and an equal or higher minor one; PTX is compiled for newer ones.
    compiled = [(int(name[:-1]), int(name[-1])) for name in re.findall(r"compute_(\d+)", " ".join(architectures))]
    works = any(m == major and n <= minor for m, n in built) or any(pair <= capability for pair in compiled)
    if built and not works:
        raise BadInput(
            Reason.NOT_ENOUGH_GPUS,
            f"spec.workers.gpu: GPU {index} has compute capability {major}.{minor}, but torch {torch.__version__} is "
            f"built for {', '.join(architectures)}; choose another spec.workers.gpu.types",
        )


def _store(prefix: str) -> Any:
    """The process group's key-value store on rank 0, with all keys below a prefix."""
    return PrefixStore(f"yolojob/{prefix}", _get_default_store())


@dataclass(frozen=True, kw_only=True)
class World:
    """This process and its place among all processes of the job."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device
    on_lost_peer: Callable[[str], None] = field(compare=False)
    """Ends this process. Called from another thread, because the main thread may be stuck in a collective."""

    @classmethod
    def from_env(cls, gpu: Gpu | None, on_lost_peer: Callable[[str], None]) -> World:
        """Read the environment that the launcher sets; without it, a world with one rank.

        Args:
            gpu: the job's GPU request; None trains on the CPU.
            on_lost_peer: called with a description of the lost rank; must end the process.

        Raises:
            BadInput: the job requires GPUs that this machine does not have, or that this version of torch cannot use.
            TrainerError: the scheduler has promised GPUs that do not work.
        """
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        gpu_count = torch.cuda.device_count() if gpu and torch.cuda.is_available() else 0
        if gpu and gpu.required and gpu_count < local_world_size:
            raise _missing_gpus(local_world_size, gpu_count)
        try:
            for index in range(local_world_size if gpu_count >= local_world_size else 0):
                check_capability(torch.cuda.get_device_capability(index), torch.cuda.get_arch_list(), index)
        except BadInput as error:
            if gpu and gpu.required:
                raise
            gpu_count = 0
            print(f"yolojob: trains on the CPU: {error}", file=sys.stderr)  # noqa: T201
        return cls(
            rank=int(os.environ.get("RANK", "0")),
            world_size=int(os.environ.get("WORLD_SIZE", "1")),
            local_rank=local_rank,
            local_world_size=local_world_size,
            # All local processes use GPUs, or none does: a mixed job would wait for its slowest rank.
            device=torch.device("cuda", local_rank) if gpu_count >= local_world_size else torch.device("cpu"),
            on_lost_peer=on_lost_peer,
        )

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def threads(self) -> int:
        """Number of CPU threads for this process."""
        return max(available_cpus() // self.local_world_size, 1)

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Open the process group: gloo for tensors in CPU memory, and NCCL for tensors on GPUs.

        While it is open, a heartbeat ends this process when a peer is lost.
        """
        if self.world_size == 1:
            yield
            return
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            # After a lost peer NCCL aborts its communicators and leaves the process alive, so that it can report why it
            # ends. By default it ends the process with SIGABRT.
            os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "2")
        forbid_object_collectives()
        connection = _connect_store(self.rank, self.world_size)
        self._check_same_device(connection)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo",
            timeout=COLLECTIVE_TIMEOUT,
            store=connection,
            rank=self.rank,
            world_size=self.world_size,
        )
        heartbeat = Heartbeat(self.on_lost_peer)
        store = _store("heartbeat")
        if self.is_main:
            only_here = self.local_world_size == self.world_size
            heartbeat.listen(lambda endpoint: store.set("endpoint", endpoint), LOOPBACK if only_here else None)
        else:
            try:
                heartbeat.connect(_rank0_host(), store.get("endpoint").decode(), self.rank)
            except OSError as error:
                raise PeerLost(Reason.PEER_LOST, f"rank 0 is gone: {error}") from None
        try:
            yield
        except Interrupted:
            heartbeat.stop()  # all ranks stop together: the first one to finish must not count as lost
            raise
        heartbeat.stop()
        # Only after success: after a failure this may wait for the failed peer.
        dist.destroy_process_group()

    def _check_same_device(self, store: TCPStore) -> None:
        """Check that all ranks use GPUs, or none: different process groups would wait for each other.

        Raises:
            PeerLost: some ranks do not connect in time.
            TrainerError: some ranks have no GPU, although their workers requested one.
        """
        key = "yolojob/device/{}".format
        store.set(key(self.rank), self.device.type)
        wait_for_ranks(store, key, self.world_size, COLLECTIVE_TIMEOUT.total_seconds())
        kinds = [store.get(key(rank)).decode() for rank in range(self.world_size)]
        if len(set(kinds)) > 1:
            without = ", ".join(str(rank) for rank, kind in enumerate(kinds) if kind == "cpu")
            raise TrainerError(
                Reason.NO_WORKING_GPU,
                f"spec.workers.gpu: rank(s) {without} have no GPU that works, the others have: a node is broken, or "
                "the nodes differ",
            )

    def barrier(self, key: str) -> None:
        """Wait for all ranks without a timeout; the heartbeat detects ranks that die meanwhile.

        A collective would end the run after COLLECTIVE_TIMEOUT, and downloading a large dataset may take longer.

        Args:
            key: name of the barrier, unique within the run.
        """
        if self.world_size == 1:
            return
        store = _store(f"barrier/{key}")
        store.set(str(self.rank), "here")
        wait_for_ranks(store, str, self.world_size)

    def synchronize(self) -> None:
        """Wait for all ranks with a collective: faster than `barrier`, but limited by COLLECTIVE_TIMEOUT."""
        if self.world_size > 1:
            dist.all_reduce(torch.zeros(1))

    @contextmanager
    def node_leaders_first(self, key: str) -> Iterator[None]:
        """Run the block on the first rank of every node, then on the other ranks, which find the results on their node.

        Args:
            key: name of the barrier between the two groups.
        """
        if self.local_rank:
            self.barrier(key)
        yield
        if not self.local_rank:
            self.barrier(key)

    @contextmanager
    def rank0_then_node_then_rest(self, key: str) -> Iterator[None]:
        """Run the block on rank 0, then on the first rank of every other node, then on all other ranks.

        Each group finds in the caches what the group before it has written.

        Args:
            key: prefix of the names of the barriers between the groups.
        """
        group = 0 if self.rank == 0 else 1 if self.local_rank == 0 else 2
        for i in range(group):
            self.barrier(f"{key}/{i}")
        yield
        for i in range(group, 3):  # after the last barrier all ranks are done
            self.barrier(f"{key}/{i}")

    def broadcast_bytes(self, data: bytes | None) -> bytes | None:
        """Return rank 0's bytes on every rank; None where rank 0 passes None."""
        if self.world_size == 1:
            return data
        size = torch.tensor([-1 if data is None else len(data)], dtype=torch.int64)
        dist.broadcast(size, 0)
        if size.item() < 0:
            return None
        if self.is_main:
            assert data is not None
            buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        else:
            buffer = torch.empty(int(size.item()), dtype=torch.uint8)
        dist.broadcast(buffer, 0)
        return data if self.is_main else buffer.numpy().tobytes()

    def gather(self, data: bytes) -> list[bytes]:
        """Return the bytes of all ranks, in rank order, on rank 0; an empty list on the others. Collective."""
        if self.world_size == 1:
            return [data]
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        dist.all_gather(sizes, torch.tensor([len(data)]))
        longest = max(int(size) for size in sizes)
        padded = torch.frombuffer(bytearray(data.ljust(longest, b"\0")), dtype=torch.uint8)
        parts = [torch.empty_like(padded) for _ in sizes] if self.is_main else None
        dist.gather(padded, parts, dst=0)
        return [part.numpy().tobytes()[: int(size)] for part, size in zip(parts or [], sizes, strict=False)]

    def sum(self, values: list[float]) -> list[float]:
        """Return the sum of each value over all ranks. All ranks must call it."""
        if self.world_size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor)
        return [float(v) for v in tensor]

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank. All ranks must call it."""
        return self.sum([float(flag)])[0] > 0

    def from_main(self, value: float) -> float:
        """Return rank 0's value on every rank. All ranks must call it."""
        return self.sum([value if self.is_main else 0.0])[0]
