"""Starts small, fast trainings in real processes."""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from support import minimal
from support.fork_server import ForkedProcess, ForkServer
from yolojob.api.manifest import parse
from yolojob.api.run import Run
from yolojob.api.trainer_report import Report

WORKER = "support.training_worker:main"
TINY = {"yolo11": [0.33, 0.0625, 256], "yolo26": [0.33, 0.0625, 128]}
BATCH, IMAGES = 8, 40
EXIT_TIMEOUT_SECONDS = 240.0
PORTS = range(20_000, 32_000)
FINISHED: dict[str, Any] = {"replicas": 1, "train": {"epochs": 4}, "checkpoint": {"everyEpochs": 3}}
"""Spec of the run that the fixture `finished` trains."""


class MicroBatch(NamedTuple):
    """What a training process has recorded of a micro-batch."""

    epoch: int
    step: int
    names: list[str]
    """File names of the images."""
    pixels: float
    """Sum of all pixels of all images."""


class ForkServers:
    """A fork server for rank 0 and one for the other ranks.

    Processes of one server share Python's hash seed. With two servers the iteration order of sets differs between
    ranks, as it does in production.
    """

    def __init__(self) -> None:
        self._servers: list[ForkServer] = []

    def for_ranks(self, world_size: int) -> list[ForkServer]:
        """The server of each rank."""
        while len(self._servers) < min(world_size, 2):
            self._servers.append(ForkServer())
        return [self._servers[min(rank, 1)] for rank in range(world_size)]

    def stop(self) -> None:
        for server in self._servers:
            server.stop()


class Gang:
    """The processes of one attempt."""

    def __init__(self, folder: Path, processes: list[ForkedProcess], started: float, master_port: int) -> None:
        """
        Args:
            folder: holds the logs, the records of the samples, the report and the output.
            processes: one for each rank.
            started: time before the first process started, seconds since 1970.
            master_port: port of torch's store, which rank 0 opens.
        """
        self.folder = folder
        self.processes = processes
        self.started = started
        self.master_port = master_port
        self.output = folder / "out"
        self.record = folder / "record"
        self._report_file = folder / "final"

    def wait(self, seconds: float = EXIT_TIMEOUT_SECONDS) -> list[int]:
        """The exit code of each rank."""
        return [process.wait(seconds) for process in self.processes]

    def report(self) -> Report:
        return Report.model_validate_json(self._report_file.read_text())

    def seconds_until_report(self) -> float:
        """Wall-clock time from the start of the processes until the report was written."""
        return self._report_file.stat().st_mtime - self.started

    def log(self, rank: int = 0) -> str:
        return (self.folder / f"log-{rank}").read_text()

    def micro_batches(self, rank: int) -> list[MicroBatch]:
        """The micro-batches of one rank in the order of training, including those of earlier attempts."""
        path = self.folder / f"record.{rank}"
        return _read_record(path) if path.exists() else []

    def samples(self) -> list[tuple[int, int, list[str]]]:
        """(epoch, step, sorted file names of all ranks) in the order of training."""
        steps: dict[tuple[int, int], list[str]] = {}
        for path in self.folder.glob("record.*"):
            for batch in _read_record(path):
                steps.setdefault((batch.epoch, batch.step), []).extend(batch.names)
        return [(*key, sorted(names)) for key, names in sorted(steps.items())]

    def remove_records(self) -> None:
        for path in self.folder.glob("record.*"):
            path.unlink()

    def kill(self) -> None:
        """Kill all processes that still run, and wait for their end."""
        for process in self.processes:
            process.kill()
            process.wait()


@dataclass
class Gangs:
    """Starts gangs: `gangs(world_size, mode, environment=..., **spec)`."""

    folder: Path
    """Shared by all attempts, as a job's output is."""
    cache: Path
    servers: ForkServers
    started: list[Gang] = field(default_factory=list)

    def __call__(
        self, world_size: int, mode: str = "samples", *, environment: dict[str, str] | None = None, **spec: Any
    ) -> Gang:
        """Start the processes of one attempt.

        Args:
            world_size: number of processes.
            mode: what the processes record, see `support.training_worker`.
            environment: environment variables on top of this process's.
            spec: see `tiny`.
        """
        run = tiny(**spec)
        servers = self.servers.for_ranks(world_size)
        gang = Gang(self.folder, [], time.time(), free_port())
        (self.folder / "final").unlink(missing_ok=True)
        self.started.append(gang)
        for rank, server in enumerate(servers):
            variables = {
                **os.environ,
                "YOLOJOB_RUN": run.to_env(),
                "YOLOJOB_OUTPUT_DIR": str(gang.output),
                "YOLOJOB_CACHE_DIR": str(self.cache),
                "YOLOJOB_TERMINATION_LOG": str(self.folder / ("final" if rank == 0 else f"final-{rank}")),
                "YOLOJOB_METRICS_PORT": "0",
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "LOCAL_WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(gang.master_port),
                "OMP_NUM_THREADS": "1",
                # A thread for each process: OpenMP threads that wait for each other waste most of a busy machine's
                # time.
                "YOLOJOB_CPUS": str(world_size),
                **(environment or {}),
            }
            process = server.start(WORKER, [mode, str(gang.record)], variables, self.folder / f"log-{rank}")
            gang.processes.append(process)
        return gang

    def stop(self) -> None:
        for gang in self.started:
            gang.kill()


def _read_record(path: Path) -> list[MicroBatch]:
    return [MicroBatch(*json.loads(line)) for line in path.read_text().splitlines()]


def free_port() -> int:
    """A TCP port of this machine that nobody uses, below the range from which the kernel picks ports for
    connections.
    """
    while True:
        port = PORTS.start + secrets.randbelow(len(PORTS))
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def tiny(
    *, model: str = "yolo11", task: str = "", replicas: int = 4, network: dict[str, Any] | None = None, **spec: Any
) -> Run:
    """A run of a very small model on a few images.

    Args:
        network: spec.model; by default, a network of TINY and the task.
        model: a key of TINY.
        task: suffix of the model and of the dataset for another task than detection: "-seg".
        replicas: spec.workers.replicas, which fixes the number of shards.
        spec: other parts of the spec; `train` is merged into the defaults.
    """
    train: dict[str, Any] = {
        "epochs": 2,
        "batch": BATCH,
        "imgsz": 64,
        "amp": False,
        "nbs": BATCH,
        "fraction": float(IMAGES),
    }
    train |= {"warmup_epochs": 0, "optimizer": "AdamW", "lr0": 0.001, **spec.pop("train", {})}
    network = network or {"name": f"{model}n{task}.yaml", "scale": TINY[model]}
    if weights := spec.pop("weights", None):
        network["weights"] = weights
    spec.setdefault("dataset", {"uri": f"builtin://digits{task}"})
    document = minimal(model=network, train=train, workers={"replicas": replicas}, **spec)
    return Run(name="digits", spec=parse(document).spec)
