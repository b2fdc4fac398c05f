"""Runs a job on this machine, without a cluster: starts the trainer's processes, and reads their reports."""

from __future__ import annotations

import importlib.util
import json
import os
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

LOG_NAME = "train.log"
FILES_WITHOUT_RESULTS = (LOG_NAME, ".yolojob.lock", "args.yaml")
"""Files that a run writes before its first step: this module, the trainer and Ultralytics each write one."""
MAX_PORT_ATTEMPTS = 100
PROGRESS_TIMEOUT_SECONDS = 2


@dataclass(frozen=True, kw_only=True)
class Places:
    """Folders of a local run."""

    runs: Path
    """Folder for the results of jobs without spec.storage, in a subfolder for each job."""
    volumes: Path
    """Folder in which pvc://CLAIM/PATH is CLAIM/PATH."""
    cache: Path
    """Folder for staged datasets, kept from run to run."""

    def output(self, job: YoloTrainingJob) -> Path:
        """Folder of the job's checkpoints and results."""
        uri = job.spec.storage.uri if job.spec.storage else None
        folder = self.runs / job.metadata.name if uri is None or uri.is_remote else uri.under(self.volumes)
        return folder.absolute()


def require_trainer() -> None:
    """Check that this machine has the trainer's packages.

    Raises:
        InvalidManifest: it has not.
    """
    if importlib.util.find_spec("yolojob_trainer") is None or importlib.util.find_spec("torch") is None:
        raise InvalidManifest([Fault(path="yolojob", message="the trainer is missing: pip install 'yolojob[trainer]'")])


class LocalRun:
    """The trainer's processes on this machine."""

    def __init__(
        self, job: YoloTrainingJob, places: Places, *, mode: Mode = Mode.TRAIN, trace_steps: int = 0, seconds: int = 0
    ) -> None:
        """Prepare the run's folder.

        Args:
            job: the job.
            places: folders on this machine.
            mode: train, tune, bench or inspect.
            trace_steps: number of steps to record as a Chrome trace.
            seconds: duration of a bench's measurements.

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
        """The topmost folder that this run created."""
        require_trainer()
        try:
            self._created = next((p for p in reversed((self.output, *self.output.parents)) if not p.exists()), None)
            self.output.mkdir(parents=True, exist_ok=True)
            self.log = self.output / LOG_NAME
            self.log.touch()
        except OSError as error:
            path = "spec.storage.uri" if job.spec.storage else "--runs"
            raise InvalidManifest(
                [Fault(path=path, value=str(self.output), message=f"cannot be written: {error.strerror}")]
            ) from None

        self._scratch = tempfile.TemporaryDirectory(prefix="yolojob-")
        self._report_file = Path(self._scratch.name) / "report.json"

    def close(self, code: int) -> None:
        """Remove temporary files and, after bad input, the folders that this run created, unless another run uses them
        by now."""
        self._scratch.cleanup()
        if code != ExitCode.BAD_INPUT or self._created is None or any(self.output.glob("checkpoints/*")):
            return
        for name in FILES_WITHOUT_RESULTS:
            (self.output / name).unlink(missing_ok=True)
        inside = (path for path in self.output.rglob("*") if path.is_dir())
        above = (path for path in self.output.parents if path.is_relative_to(self._created))
        for folder in [*sorted(inside, reverse=True), self.output, *above]:
            try:
                folder.rmdir()
            except OSError:
                continue  # it is not empty

    def start(self) -> None:
        """Start the processes in a session of their own: Ctrl-C reaches only this process, which calls `stop`."""
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
            constants.ENV_TERMINATION_LOG: str(self._report_file),
            "PET_NNODES": "1",
            "PET_NODE_RANK": "0",
            "PET_NPROC_PER_NODE": str(self.world_size),
            "PET_MASTER_ADDR": "127.0.0.1",
            "PYTHONUNBUFFERED": "1",
            # The current folder may hold anything: without this, Python would import modules from it first.
            "PYTHONSAFEPATH": "1",
            # The processes are on one machine, so no other one needs to connect.
            "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo"),
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
        """The current report of rank 0; None while rank 0 does not answer."""
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self._port}/progress", timeout=PROGRESS_TIMEOUT_SECONDS
            ) as response:
                return Report.model_validate(json.load(response))
        except (OSError, HTTPException, ValueError, ValidationError):  # the process may end while it answers
            return None

    def wait(self, seconds: float) -> int | None:
        """The exit code; None if the run has not ended after this time."""
        assert self._process is not None
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def stop(self) -> None:
        """Tell all processes to save the state and exit."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill all processes."""
        assert self._process is not None
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def report(self, code: int) -> Report:
        """The trainer's final report; without one, a report of the failure.

        Args:
            code: the exit code.
        """
        try:
            report = Report.model_validate_json(self._report_file.read_text())
        except (OSError, ValidationError):
            report = Report(state=TrainerState.FAILED)
        if code != ExitCode.SUCCEEDED and report.failure is None:
            message = f"the trainer exited with code {code} without a report; its log is {self.log}"
            report.state = TrainerState.FAILED
            report.failure = Failure(reason=Reason.TRAINER_ENDED, message=message, exit_code=code)
        if report.result and (self.output / "weights" / "best.pt").exists():
            report.result.weights = str(self.output / "weights" / "best.pt")
        return report


def _free_ports(count: int) -> int:
    """The first of `count` consecutive ports that are currently free."""
    for _ in range(MAX_PORT_ATTEMPTS):
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
    raise OSError(f"found no {count} consecutive free ports")
