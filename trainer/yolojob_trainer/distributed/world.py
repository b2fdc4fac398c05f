"""Who trains with whom: ranks, devices, process groups, and the few things that all ranks must agree on."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore

from yolojob.api.reasons import Reason
from yolojob.api.spec import Gpu
from yolojob_trainer.distributed.heartbeat import Heartbeat
from yolojob_trainer.errors import BadInput, Interrupted, PeerLost
from yolojob_trainer.system.process import available_cpus

TIMEOUT = timedelta(minutes=10)
"""A collective that takes longer has lost somebody. Ultralytics waits three hours."""


def wait_for_port(host: str, port: int, seconds: float) -> None:
    """Wait until somebody listens.

    torch's store would wait, too, but it holds on to the address that it has found first: after a restart that may be the
    old pod's, for as long as a name server remembers it. Here the name is looked up anew for every attempt.

    Raises:
        PeerLost: nobody did in time.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            with socket.create_connection((host, port), timeout=1.0):
                return
        except OSError as error:
            if time.monotonic() > deadline:
                raise PeerLost(
                    Reason.PEER_LOST, f"worker 0 is not at {host}:{port} after {seconds:.0f} s: {error}"
                ) from None
            time.sleep(0.1)


def _store(prefix: str) -> Any:
    """The group's key-value store, which rank 0 holds."""
    return PrefixStore(f"yolojob/{prefix}", dist.distributed_c10d._get_default_store())


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among all."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device
    on_lost_peer: Callable[[str], None] = field(compare=False)
    """Ends this process; called from another thread, while this one may be stuck in a collective."""

    @classmethod
    def from_env(cls, gpu: Gpu | None, on_lost_peer: Callable[[str], None]) -> World:
        """Read torchrun's environment; without it, a world of one.

        Args:
            gpu: what the job asks for; none trains on the CPU.
            on_lost_peer: told who is lost; must end the process.

        Raises:
            BadInput: the job requires GPUs that this machine does not have.
        """
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        found = torch.cuda.device_count() if gpu and torch.cuda.is_available() else 0
        if gpu and gpu.required and found < local_world_size:
            raise BadInput(
                Reason.NOT_ENOUGH_GPUS,
                f"spec.workers.gpu: {local_world_size} process(es) need a GPU each, and here are {found}; set "
                "spec.workers.gpu.required: false to train on the CPU, or leave spec.workers.gpu out",
            )
        return cls(
            rank=int(os.environ.get("RANK", "0")),
            world_size=int(os.environ.get("WORLD_SIZE", "1")),
            local_rank=local_rank,
            local_world_size=local_world_size,
            # All local processes on GPUs, or none: a gang of both would wait for its slowest.
            device=torch.device("cuda", local_rank) if found >= local_world_size else torch.device("cpu"),
            on_lost_peer=on_lost_peer,
        )

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def threads(self) -> int:
        """CPU threads for this process."""
        return max(available_cpus() // self.local_world_size, 1)

    @contextmanager
    def connected(self) -> Iterator[None]:
        """The process group: gloo between CPUs, and NCCL between GPUs beside gloo for what lies in CPU memory.

        While it lasts a heartbeat ends this process when a peer is lost.
        """
        if self.world_size == 1:
            yield
            return
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        if not self.is_main:
            wait_for_port(host, port, TIMEOUT.total_seconds())
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo",
            timeout=TIMEOUT,
            rank=self.rank,
            world_size=self.world_size,
        )
        heartbeat = Heartbeat(self.on_lost_peer)
        store = _store("heartbeat")
        if self.is_main:
            heartbeat.listen(lambda words: store.set("where", words))
        else:
            try:
                heartbeat.connect(host, store.get("where").decode(), self.rank)
            except OSError as error:
                raise PeerLost(Reason.PEER_LOST, f"rank 0 is gone: {error}") from None
        try:
            yield
        except Interrupted:
            heartbeat.stop()  # agreed upon by all: who is done first is not missed
            raise
        heartbeat.stop()
        # Only after success: after a failure the group may wait for the peer that failed.
        dist.destroy_process_group()

    def meet(self, where: str) -> None:
        """Wait for all ranks, however long it takes: whoever dies meanwhile is noticed by the heartbeat.

        A collective would end the run after TIMEOUT, and fetching a large data set may take longer.
        """
        if self.world_size == 1:
            return
        store = _store(f"meet/{where}")
        store.set(str(self.rank), "here")
        for rank in range(self.world_size):
            while not store.check([str(rank)]):
                time.sleep(0.05)

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.all_reduce(torch.zeros(1))

    @contextmanager
    def node_first(self, what: str) -> Iterator[None]:
        """Every node's first rank, all at once, then the others: what has been fetched is there."""
        if self.local_rank:
            self.meet(what)
        yield
        if not self.local_rank:
            self.meet(what)

    @contextmanager
    def in_turns(self, what: str) -> Iterator[None]:
        """Global rank 0 first, then every node's first rank, then the others: what one has cached the next finds."""
        turn = 0 if self.rank == 0 else 1 if self.local_rank == 0 else 2
        for i in range(turn):
            self.meet(f"{what}/{i}")
        yield
        for i in range(turn, 3):  # the third one: all are done
            self.meet(f"{what}/{i}")

    def broadcast_bytes(self, data: bytes | None) -> bytes | None:
        """Rank 0's bytes on every rank. None on rank 0 is None everywhere."""
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
        """The bytes of all ranks, in their order, on rank 0; nothing on the others. All ranks must call it."""
        if self.world_size == 1:
            return [data]
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        dist.all_gather(sizes, torch.tensor([len(data)]))
        longest = max(int(size) for size in sizes)
        mine = torch.frombuffer(bytearray(data.ljust(longest, b"\0")), dtype=torch.uint8)
        parts = [torch.empty_like(mine) for _ in sizes] if self.is_main else None
        dist.gather(mine, parts, dst=0)
        return [part.numpy().tobytes()[: int(size)] for part, size in zip(parts or [], sizes, strict=False)]

    def sum(self, values: list[float]) -> list[float]:
        """Sums over all ranks."""
        if self.world_size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor)
        return [float(v) for v in tensor]


class Votes:
    """What any rank may ask of all: cast before a step, known before the next, hidden behind the work between.

    Every rank must call `exchange` once per step. The answer is the same on all of them, so all act in the same step.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        # A group of its own: these reductions never queue behind those of gradients.
        self._group: Any = dist.new_group(backend="gloo", timeout=TIMEOUT) if world.world_size > 1 else None
        self._pending: tuple[torch.Tensor, dist.Work | None] | None = None

    def exchange(self, *, stop: bool, save: bool, diverged: bool) -> tuple[bool, bool, bool]:
        """Cast this step's votes; return what the last step's came to."""
        last = self.drain()
        mine = torch.tensor([stop, save, diverged], dtype=torch.int32)
        work = None
        if self._group is not None:
            work = dist.all_reduce(mine, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._pending = (mine, work)
        return last

    def drain(self) -> tuple[bool, bool, bool]:
        """What the votes that are under way come to; none afterwards."""
        if self._pending is None:
            return (False, False, False)
        votes, work = self._pending
        self._pending = None
        if work is not None:
            work.wait()
        return (bool(votes[0]), bool(votes[1]), bool(votes[2]))
