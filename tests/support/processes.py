"""Real training processes for tests, small and fast."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from support import minimal
from yolojob.api.manifest import parse
from yolojob.api.run import Run
from yolojob.api.trainer_report import Report

WORKER = Path(__file__).parent / "training_worker.py"
TINY = {"yolo11": [0.33, 0.0625, 256], "yolo26": [0.33, 0.0625, 128]}
BATCH, IMAGES = 8, 40


class Gang:
    """The processes of one attempt."""

    def __init__(
        self, folder: Path, cache: Path, run: Run, world_size: int, mode: str, environment: dict[str, str]
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.final = folder / "final"
        self.final.unlink(missing_ok=True)
        self.record = folder / "record"
        self.processes = []
        for rank in range(world_size):
            variables = {
                **os.environ,
                "YOLOJOB_RUN": run.to_env(),
                "YOLOJOB_OUTPUT_DIR": str(folder / "out"),
                "YOLOJOB_CACHE_DIR": str(cache),
                "YOLOJOB_TERMINATION_LOG": str(self.final if rank == 0 else folder / f"final-{rank}"),
                "YOLOJOB_METRICS_PORT": "0",
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "LOCAL_WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
                **environment,
            }
            command = [sys.executable, str(WORKER), mode, str(self.record)]
            log = (folder / f"log-{rank}").open("w")
            self.processes.append(subprocess.Popen(command, env=variables, stdout=log, stderr=log))

    def wait(self, seconds: float = 120) -> list[int]:
        return [p.wait(seconds) for p in self.processes]

    def report(self) -> Report:
        return Report.model_validate_json(self.final.read_text())

    def log(self, rank: int = 0) -> str:
        return (self.record.parent / f"log-{rank}").read_text()

    def samples(self) -> list[tuple[int, int, list[str]]]:
        """(epoch, step, file names of all ranks), step by step as they were trained."""
        steps: dict[tuple[int, int], list[str]] = {}
        for path in sorted(self.record.parent.glob("record.*")):
            for line in path.read_text().splitlines():
                epoch, step, names, _ = json.loads(line)
                steps.setdefault((epoch, step), []).extend(names)
        return [(*key, sorted(names)) for key, names in sorted(steps.items())]


def tiny(*, model: str = "yolo11", replicas: int = 4, **spec: Any) -> Run:
    """A run of a very small model on a few images; `train` and other parts of the spec as asked for."""
    train = {"epochs": 2, "batch": BATCH, "imgsz": 64, "amp": False, "nbs": BATCH, "fraction": float(IMAGES)}
    train |= {"warmup_epochs": 0, "optimizer": "AdamW", "lr0": 0.001, **spec.pop("train", {})}
    network: dict[str, Any] = {"name": f"{model}n.yaml", "scale": TINY[model]}
    if weights := spec.pop("weights", None):
        network["weights"] = weights
    document = minimal(model=network, train=train, workers={"replicas": replicas}, **spec)
    return Run(name="digits", spec=parse(document).spec)
