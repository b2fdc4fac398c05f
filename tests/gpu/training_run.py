"""Starts trainings as a worker's pod does, and reads what they leave."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gpu.process_tree import kill_tree
from gpu.scale import cache_folder, dataset_folder, scale
from gpu.table import Row, verdict
from yolojob.api.manifest import parse
from yolojob.api.run import Run
from yolojob.api.trainer_report import Report

POLL_SECONDS = 0.05


def synthetic_uri() -> str:
    return f"file://{dataset_folder()}"


def run_of(dataset: str, train: dict[str, Any], network: dict[str, Any] | None = None, **spec: Any) -> Run:
    """Return a run with one GPU for each worker, or without one on a CPU.

    Args:
        dataset: its URI.
        train: spec.train.
        network: spec.model; default: that of the measurements of speed.
        spec: other parts of the spec.
    """
    gpu = {"gpu": {"count": 1}} if scale().gpu else {}
    document = {
        "apiVersion": "yolojob.dev/v1alpha1",
        "kind": "YoloTrainingJob",
        "metadata": {"name": "gpu-check"},
        "spec": {
            "model": network or scale().network,
            "dataset": {"uri": dataset},
            "train": train,
            **spec,
            "workers": {**gpu, **spec.get("workers", {})},
        },
    }
    return Run(name="gpu-check", spec=parse(document).spec)


started: list[TrainingRun] = []
"""All runs of this process that have been started: a check that fails must not leave any behind."""


class TrainingRun:
    """One trainer process, or one launcher, with its folder."""

    def __init__(  # noqa: PLR0913 - a process's place and conditions
        self,
        run: Run,
        folder: Path,
        *,
        rank: int = 0,
        world_size: int = 1,
        port: int = 29555,
        conditions: dict[str, str] | None = None,
    ) -> None:
        """
        Args:
            run: to train.
            folder: of the run; all its ranks share it.
            rank: of this process.
            world_size: number of processes.
            port: of the store of all ranks.
            conditions: environment variables of `gpu.worker`, which then is started instead of the launcher.
        """
        self.output = folder / "out"
        self.seconds = 0.0
        """Wall-clock time from the start to the end of the process."""
        self._name = folder.name
        self._log = folder / f"log-{rank}.txt"
        self._report_file = folder / f"report-{rank}.json"
        self._norm_file = folder / f"norm-{rank}"
        folder.mkdir(parents=True, exist_ok=True)
        self.environment = {
            **os.environ,
            "YOLOJOB_RUN": run.to_env(),
            "YOLOJOB_OUTPUT_DIR": str(self.output),
            "YOLOJOB_CACHE_DIR": str(cache_folder()),
            "YOLOJOB_VOLUMES_DIR": str(folder),
            "YOLOJOB_METRICS_PORT": "0",
            "YOLOJOB_TERMINATION_LOG": str(self._report_file),
            "PYTHONUNBUFFERED": "1",
            # Several trainings share the cores of a CPU, and their networks are too small for two threads.
            **({} if scale().gpu else {"YOLOJOB_CPUS": "1", "OMP_NUM_THREADS": "1"}),
            "PET_NNODES": str(world_size),
            "PET_NODE_RANK": str(rank),
            "PET_NPROC_PER_NODE": "1",
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": str(port),
        }
        self._module = "yolojob_trainer.launch"
        if conditions is not None:
            self._module = "gpu.worker"
            self.environment |= {
                "RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "LOCAL_RANK": "0",  # all ranks use the same GPU
                "LOCAL_WORLD_SIZE": "1",
                "GPU_CHECKS_NORM": str(self._norm_file),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                **conditions,
            }

    def start(self) -> TrainingRun:
        started.append(self)
        self._report_file.unlink(missing_ok=True)
        self._started = time.monotonic()
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self._module],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return self

    def wait(self, seconds: float | None = None) -> int | None:
        """Return the exit code; None if the process was killed at the timeout."""
        try:
            code = self.process.wait(seconds or scale().timeout_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return None
        self.seconds = time.monotonic() - self._started
        return code

    def kill(self) -> None:
        """Kill the process and its children, and wait until the children have released the GPU."""
        kill_tree(self.process)

    def has_written(self, pattern: str, count: int) -> bool:
        """Wait until this number of files in its output match; return whether they do."""
        deadline = time.monotonic() + scale().timeout_seconds
        while len(list(self.output.glob(pattern))) < count:
            if time.monotonic() > deadline or self.process.poll() is not None:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def report(self) -> Report:
        return Report.model_validate_json(self._report_file.read_text())

    def first_norm(self) -> float:
        """Return the norm of the gradients of the first step; only `gpu.worker` records it."""
        return float(self._norm_file.read_text())

    def log(self) -> list[str]:
        """Return the lines that it has printed."""
        return self._log.read_text(errors="replace").splitlines() if self._log.exists() else []

    def results(self) -> list[dict[str, str]]:
        """Return the rows of results.csv."""
        with (self.output / "results.csv").open() as file:
            return list(csv.DictReader(file))

    def spans(self) -> list[dict[str, Any]]:
        """Return the lines of rank 0's time line."""
        paths = sorted((self.output / "trace" / "rank-0").glob("*.jsonl"))
        return [json.loads(line) for path in paths for line in path.read_text().splitlines()]

    def failure(self, check: str, code: int | None) -> Row:
        """Return the row for a process that should have succeeded; print the end of its log."""
        lines = self.log()
        print(f"--- {self._name}", *lines[-40:], sep="\n")
        last = next((line for line in reversed(lines) if line.strip()), "it printed nothing")
        return verdict(check, f"exit code {code}: {last[:80]}", "0", False)
