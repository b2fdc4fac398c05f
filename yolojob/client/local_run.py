"""A run on this machine, without a cluster: the trainer's processes, what they say, and how they end."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from pydantic import ValidationError

from yolojob.api import constants
from yolojob.api.constants import ExitCode, Mode
from yolojob.api.job import YoloTrainingJob
from yolojob.api.manifest import Fault, InvalidManifest
from yolojob.api.reasons import Reason
from yolojob.api.run import Run
from yolojob.api.trainer_report import Failure, Report, TrainerState

LOG = "train.log"


@dataclass(frozen=True, kw_only=True)
class Places:
    """Folders of a local run."""

    runs: Path
    """Where runs without spec.storage leave their results, by name."""
    volumes: Path
    """Where pvc://CLAIM/PATH is CLAIM/PATH."""
    cache: Path
    """Where staged data sets are kept from run to run."""

    def output(self, job: YoloTrainingJob) -> Path:
        """Folder of the job's checkpoints and results."""
        where = job.spec.storage.uri if job.spec.storage else None
        folder = self.runs / job.metadata.name if where is None or where.is_remote else where.under(self.volumes)
        return folder.absolute()


class LocalRun:
    """The trainer's processes on this machine."""

    def __init__(
        self, job: YoloTrainingJob, places: Places, *, mode: Mode = Mode.TRAIN, trace_steps: int = 0, seconds: int = 0
    ) -> None:
        """Prepare the run's folder.

        Args:
            job: what is trained.
            places: folders of this machine.
            mode: what is to be done.
            trace_steps: steps to record as a Chrome trace.
            seconds: time for the measurements of a bench.

        Raises:
            InvalidManifest: this machine cannot run this job.
        """
        self.job = job
        self.output = places.output(job)
        self.world_size = job.spec.workers.world_size
        self._places = places
        self._trace_steps = trace_steps
        self._mode, self._seconds = mode, seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._created: Path | None = None
        """The topmost folder that was not there before."""
        if importlib.util.find_spec("yolojob_trainer") is None or importlib.util.find_spec("torch") is None:
            raise InvalidManifest(
                [Fault(path="yolojob", message="the trainer is missing: pip install 'yolojob[trainer]'")]
            )
        try:
            self._created = next((p for p in reversed((self.output, *self.output.parents)) if not p.exists()), None)
            self.output.mkdir(parents=True, exist_ok=True)
            self.log = self.output / LOG
            self.log.touch()
        except OSError as error:
            where = "spec.storage.uri" if job.spec.storage else "--runs"
            raise InvalidManifest(
                [Fault(path=where, value=str(self.output), message=f"cannot be written: {error.strerror}")]
            ) from None

        self._scratch = tempfile.TemporaryDirectory(prefix="yolojob-")
        self._final = Path(self._scratch.name) / "report.json"

    def close(self, code: int) -> None:
        """Leave nothing behind but results: what bad input has made is removed again."""
        self._scratch.cleanup()
        if code == ExitCode.BAD_INPUT and self._created is not None:
            shutil.rmtree(self._created, ignore_errors=True)

    def start(self) -> None:
        """Start the processes. They have a session of their own: Ctrl-C here reaches only us, and we pass it on."""
        self._port = _free_ports(self.world_size)
        run = Run(name=self.job.metadata.name, namespace=self.job.metadata.namespace or "local", spec=self.job.spec)
        environment = {
            **os.environ,
            constants.ENV_RUN: run.to_env(),
            constants.ENV_OUTPUT_DIR: str(self.output),
            constants.ENV_CACHE_DIR: str(self._places.cache.absolute()),
            constants.ENV_VOLUMES_DIR: str(self._places.volumes.absolute()),
            constants.ENV_METRICS_PORT: str(self._port),
            constants.ENV_TRACE_STEPS: str(self._trace_steps),
            constants.ENV_MODE: self._mode,
            constants.ENV_BENCH_SECONDS: str(self._seconds or ""),
            constants.ENV_TERMINATION_LOG: str(self._final),
            "PET_NNODES": "1",
            "PET_NODE_RANK": "0",
            "PET_NPROC_PER_NODE": str(self.world_size),
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": str(_free_ports(1)),
            "PYTHONUNBUFFERED": "1",
        }
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "yolojob_trainer.launch"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def progress(self) -> Report | None:
        """What rank 0 says at this moment; none while it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/progress", timeout=2) as answer:
                return Report.model_validate(json.load(answer))
        except (OSError, HTTPException, ValueError, ValidationError):  # it may end in the middle of its answer
            return None

    def wait(self, seconds: float) -> int | None:
        """The exit code; none when the run goes on after so many seconds."""
        assert self._process is not None
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def stop(self) -> None:
        """Ask all processes to save and end."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End all processes at once."""
        assert self._process is not None
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def report(self, code: int) -> Report:
        """The last word: what the trainer left, or what can be told without it."""
        try:
            report = Report.model_validate_json(self._final.read_text())
        except (OSError, ValidationError):
            report = Report(state=TrainerState.FAILED)
        if code != ExitCode.SUCCEEDED and report.failure is None:
            message = f"the trainer ended with exit code {code} and left no word; its log is {self.log}"
            report.state = TrainerState.FAILED
            report.failure = Failure(reason=Reason.TRAINER_ENDED, message=message, exit_code=code)
        if report.result and (self.output / "weights" / "best.pt").exists():
            report.result.weights = str(self.output / "weights" / "best.pt")
        return report


def _free_ports(count: int) -> int:
    """The first of `count` consecutive ports that are free at this moment."""
    for _ in range(100):
        sockets: list[socket.socket] = []
        try:
            for i in range(count):
                port = sockets[0].getsockname()[1] + i if sockets else 0
                probe = socket.socket()
                sockets.append(probe)
                probe.bind(("127.0.0.1", port))
            return int(sockets[0].getsockname()[1])
        except (OSError, OverflowError):
            continue
        finally:
            for probe in sockets:
                probe.close()
    raise OSError(f"found no {count} free ports in a row")
