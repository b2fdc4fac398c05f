"""Random faults over many small training jobs on the test cluster; not part of CI: `make chaos`.

Some faults affect one job (a killed process, a deleted pod, a damaged checkpoint). The others affect the whole cluster
(a killed operator or API server, a paused etcd, a node without power). The pause, the longest time between two steps
until the job has recovered, comes from the traces of the trainers, the counts from the status. The table is printed,
and written as JSON to YOLOJOB_CHAOS_OUT.

    YOLOJOB_CHAOS_JOBS=50 YOLOJOB_CHAOS_FAULTS=200 YOLOJOB_CHAOS_SEED=1 make chaos
"""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from devcluster import control_plane, processes, settings
from support import ROOT, eventually, minimal
from support.jobs import let_pass
from support.kube import Kube, devcluster
from support.release import HOME

JOBS = int(os.environ.get("YOLOJOB_CHAOS_JOBS", "50"))
FAULTS = int(os.environ.get("YOLOJOB_CHAOS_FAULTS", "200"))
SEED = int(os.environ.get("YOLOJOB_CHAOS_SEED", "1"))
PARALLEL = int(os.environ.get("YOLOJOB_CHAOS_PARALLEL", "4"))
"""Jobs that train at the same time."""
GLOBAL_SHARE = 0.2
"""Share of the faults that affect the whole cluster."""
EPOCHS, STEPS, BATCH = 40, 10, 16
VOLUME_MEGABYTES = 48
RECOVERY_SECONDS = 600
BUCKET, BUCKET_PORT = "runs", 15432
BUCKET_FOLDER = settings.STATE / "volumes" / "bucket"
BUCKET_EVERY = 4
"""One of so many jobs keeps its results in a bucket instead of on a volume."""
CLOCK = "clock-offset"
"""Name of the ConfigMap with the library that shifts a clock, and of the file in /tmp with the shift."""
CLOCK_SHIFT_SECONDS = 86400
POD_DELETED, POD_EVICTED, POD_DELETED_WITHOUT_QUOTA = "pod deleted", "pod evicted", "pod deleted, no quota for 8 s"
ENDS_GRACEFULLY = (POD_DELETED, POD_EVICTED, POD_DELETED_WITHOUT_QUOTA)

pytestmark = pytest.mark.timeout(4 * 3600)


@dataclass
class Job:
    """One job of the run."""

    name: str
    in_bucket: bool
    """Whether its results are in a bucket instead of on a volume."""
    faults: list[Fault] = field(default_factory=list)
    status: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Its results: those on the volume, or the copies of the traces in the bucket."""
        return (BUCKET_FOLDER if self.in_bucket else settings.STATE / "volumes") / self.name


@dataclass
class Fault:
    """A fault that affected a job."""

    kind: str
    at: float
    """Seconds since 1970."""
    before: dict[str, Any]
    """The job's status before it."""
    after: dict[str, Any] = field(default_factory=dict)
    """The job's status once it trained again."""
    recovered: float = 0.0
    """When that was seen."""

    def change(self, name: str) -> int:
        return int(self.after.get(name, 0) - self.before.get(name, 0))

    @property
    def lost_seconds(self) -> float:
        def lost(status: dict[str, Any]) -> float:
            return float((status.get("timing") or {}).get("lostSeconds") or 0.0)

        return lost(self.after) - lost(self.before)


def document(job: Job) -> dict[str, Any]:
    environment = {
        "YOLOJOB_CPUS": "1",
        "OMP_NUM_THREADS": "1",
        "LD_PRELOAD": "/clock/offset.so",
        "AWS_ENDPOINT_URL": f"http://{settings.CONTROL_IP}:{BUCKET_PORT}",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    container = {
        "name": "trainer",
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "volumeMounts": [{"name": "clock", "mountPath": "/clock"}],
    }
    pod = {
        "containers": [container],
        "volumes": [{"name": "clock", "configMap": {"name": CLOCK}}],
        "terminationGracePeriodSeconds": 10,
    }
    workers = {
        "replicas": 2,
        "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"memory": "4Gi"}},
        "template": {"spec": pod},
    }
    return minimal(
        job.name,
        model={"name": "yolo11n.yaml", "scale": [0.33, 0.0625, 256]},
        train={"epochs": EPOCHS, "batch": BATCH, "nbs": BATCH, "imgsz": 64, "fraction": STEPS * BATCH, "patience": 0},
        workers=workers,
        storage={"uri": f"s3://{BUCKET}/{job.name}" if job.in_bucket else f"pvc://{job.name}"},
        checkpoint={"everySeconds": 3},
        runPolicy={"backoffLimit": 1000, "disruptionLimit": 1000},
    )


def clock_library(folder: Path) -> dict[str, Any]:
    """The ConfigMap with the library that shifts the wall clock of a trainer."""
    library = folder / "offset.so"
    source = ROOT / "tests" / "support" / "clock_offset.c"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    content = base64.b64encode(library.read_bytes()).decode()
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": CLOCK}, "binaryData": {"offset.so": content}}


def start_bucket() -> None:
    """Start the S3 server, where pods reach it."""
    BUCKET_FOLDER.mkdir(parents=True, exist_ok=True)
    address = [settings.CONTROL_IP, str(BUCKET_PORT), BUCKET, str(BUCKET_FOLDER)]
    command = [sys.executable, "-m", "support.bucket_server", *address]
    processes.launch("bucket", processes.inside(settings.NETNS, *command), PYTHONPATH=str(ROOT / "tests"))


def claim(kube: Kube, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": ""}
    folder = settings.STATE / "volumes" / name
    volume = {
        "capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteOnce"],
        "persistentVolumeReclaimPolicy": "Retain",
        "claimRef": {"namespace": kube.namespace, "name": name},
        "hostPath": {"path": str(folder)},
        "storageClassName": "",
    }
    return (
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": volume},
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec},
    )


def patiently(call: Callable[[], Any]) -> Any:
    """Repeat a request until the API server answers; return its result."""

    def attempt() -> list[Any] | None:
        try:
            return [call()]
        except (subprocess.CalledProcessError, AssertionError, json.JSONDecodeError, KeyError):
            return None

    return eventually(attempt, "the API server answers", seconds=RECOVERY_SECONDS, every=0.5)[0]


class Chaos:
    """The jobs and the faults of one run."""

    def __init__(self, kube: Kube) -> None:
        self.kube = kube
        self.random = random.Random(SEED)
        self.running: dict[str, Job] = {}
        self.lock = threading.Lock()
        self.injecting = threading.Semaphore(PARALLEL)
        """Held once while a fault of a job is injected. A fault of the whole cluster takes it for all jobs, until they
        have recovered."""
        self.left = FAULTS - round(FAULTS * GLOBAL_SHARE)
        self.job_faults: list[Callable[[Job], str]] = [
            self.kill_trainer,
            self.kill_launcher,
            self.delete_pod,
            self.evict_pod,
            self.cut_network,
            self.exhaust_quota,
            self.shift_clock,
        ]
        self.volume_faults: list[Callable[[Job], str]] = [self.damage_checkpoint, self.fill_disk]
        self.bucket_faults: list[Callable[[Job], str]] = [self.refuse_bucket, self.refuse_bucket_and_kill]
        self.cluster_faults: list[Callable[[], str]] = [
            self.kill_operator,
            self.kill_api_server,
            self.pause_etcd,
            self.cut_api_server_off,
            self.cut_power,
            self.drain_node,
        ]

    # --- the course of a job ----------------------------------------------------------------------------------------

    def train(self, number: int) -> Job:
        """Run one job to its end, and inject its share of the faults."""
        job = Job(f"chaos-{number}", number % BUCKET_EVERY == 0)
        job.folder.mkdir(parents=True, exist_ok=True)
        if not job.in_bucket:  # a disk of its own, so that it can be filled
            options = f"size={VOLUME_MEGABYTES}m,mode=0777"
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(job.folder)], check=True)
            patiently(lambda: self.kube.apply(*claim(self.kube, job.name)))
        patiently(lambda: self.kube.apply(document(job)))
        kinds = self.job_faults + (self.bucket_faults if job.in_bucket else self.volume_faults)
        faults = self._take(-(-(FAULTS - round(FAULTS * GLOBAL_SHARE)) // JOBS))
        with self.lock:
            self.running[job.name] = job
        for _ in range(faults):
            status = self.wait_for_training(job, 0.0)
            if status["phase"] in ("Succeeded", "Failed"):
                break
            with self.injecting:
                inject = self.random.choice(kinds)
                fault = Fault("", time.time(), status)
                job.faults.append(fault)
                fault.kind = inject(job)
            # A pod that is deleted trains on until it is stopped.
            attempt = status["attempt"] + (fault.kind in ENDS_GRACEFULLY)
            fault.after, fault.recovered = self.wait_for_training(job, fault.at, attempt), time.time()
            print(f"{job.name}: {fault.kind}: attempt {fault.after['attempt']}", flush=True)
        job.status = eventually(lambda: self.ended(job), f"{job.name} ends", seconds=3 * RECOVERY_SECONDS, every=1)
        with self.lock:
            del self.running[job.name]
        return job

    def training(self) -> list[Job]:
        """The jobs that have trained a step and have not ended."""
        with self.lock:
            jobs = [job for job in self.running.values() if trained(job.folder)]
        return [job for job in jobs if self.status(job).get("phase") == "Running"]

    def _take(self, count: int) -> int:
        with self.lock:
            taken = min(count, self.left)
            self.left -= taken
            return taken

    def status(self, job: Job) -> dict[str, Any]:
        return dict(patiently(lambda: self.kube.status(job.name)))

    def ended(self, job: Job) -> dict[str, Any] | None:
        status = self.status(job)
        return status if status.get("phase") in ("Succeeded", "Failed") else None

    def wait_for_training(self, job: Job, since: float, attempt: int = 0) -> dict[str, Any]:
        """Wait until this attempt runs and has started more than STEPS steps after `since`; return the job's status."""

        def look() -> dict[str, Any] | None:
            status = self.status(job)
            if status.get("phase") in ("Succeeded", "Failed"):
                return status
            # A shifted clock has written other times.
            steps = [start for start, _ in trained(job.folder) if since < start <= time.time()]
            runs = status.get("phase") == "Running" and status["attempt"] >= attempt
            return status if runs and len(steps) > STEPS else None

        return dict(eventually(look, f"{job.name} trains", seconds=RECOVERY_SECONDS, every=1))

    # --- faults of one job ------------------------------------------------------------------------------------------

    def pod(self, job: Job) -> str:
        return f"{job.name}-worker-{self.random.randrange(2)}"

    def kill_trainer(self, job: Job) -> str:
        kill(self.pod(job), TRAINER)
        return "kill -9 of a trainer"

    def kill_launcher(self, job: Job) -> str:
        kill(self.pod(job), "yolojob_trainer.launch\0")
        return "kill -9 of a launcher"

    def delete_pod(self, job: Job) -> str:
        patiently(lambda: self.kube.run("delete", "pod", self.pod(job), "--wait=false", "--ignore-not-found"))
        return POD_DELETED

    def evict_pod(self, job: Job) -> str:
        name = self.pod(job)
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
        path = f"/api/v1/namespaces/{self.kube.namespace}/pods/{name}/eviction"
        body = json.dumps({**eviction, "metadata": {"name": name, "namespace": self.kube.namespace}})
        patiently(lambda: self.kube.run("create", "--raw", path, "--filename", "-", input=body))
        return POD_EVICTED

    def damage_checkpoint(self, job: Job) -> str:
        newest = max((job.folder / "checkpoints").glob("*.pt"), default=None)
        if newest is not None:
            with newest.open("r+b") as file:
                file.seek(newest.stat().st_size // 2)
                file.write(os.urandom(4096))
        kill(f"{job.name}-worker-0", TRAINER)
        return "newest checkpoint damaged, kill -9 of rank 0"

    def fill_disk(self, job: Job) -> str:
        ballast = job.folder / "ballast"
        subprocess.run(["dd", "if=/dev/zero", f"of={ballast}", "bs=1M"], check=False, capture_output=True)
        let_pass(8)
        ballast.unlink()
        return "disk full for 8 s"

    def cut_network(self, job: Job) -> str:
        pods = [p for p in patiently(lambda: self.kube.pods(job.name)) if p["status"].get("podIP")]
        routes = [
            (int(here["spec"]["nodeName"].rpartition("-")[2]), f"{there['status']['podIP']}/32")
            for here in pods
            for there in pods
            if here is not there and here["spec"]["nodeName"] != there["spec"]["nodeName"]
        ]
        for verb in ("add", "del"):
            for node, address in routes:
                route = ["ip", "route", verb, "blackhole", address]
                subprocess.run(processes.inside(settings.node_netns(node), *route), check=False, capture_output=True)
            if verb == "add":
                let_pass(25)
        return "network between the workers cut for 25 s"

    def exhaust_quota(self, job: Job) -> str:
        quota = {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": "none"},
            "spec": {"hard": {"pods": "0"}},
        }
        patiently(lambda: self.kube.apply(quota))
        patiently(lambda: self.kube.run("delete", "pod", self.pod(job), "--wait=false", "--ignore-not-found"))
        let_pass(8)
        patiently(lambda: self.kube.run("delete", "resourcequota", "none", "--ignore-not-found"))
        return POD_DELETED_WITHOUT_QUOTA

    def shift_clock(self, job: Job) -> str:
        shift = self.random.choice((-1, 1)) * CLOCK_SHIFT_SECONDS
        for seconds in (shift, 0):
            for pid in pids(self.pod(job), TRAINER):
                with Path(f"/proc/{pid}/root/tmp/{CLOCK}").open("r+b") as file:
                    file.write(struct.pack("q", seconds))
            if seconds:
                let_pass(10)
        return f"clock of a worker {'ahead' if shift > 0 else 'behind'} by a day for 10 s"

    def refuse_bucket(self, job: Job) -> str:
        self._refuse_for(15)
        return "bucket answers 503 for 15 s"

    def refuse_bucket_and_kill(self, job: Job) -> str:
        kill(self.pod(job), TRAINER)
        self._refuse_for(15)
        return "kill -9 of a trainer, bucket answers 503 for 15 s"

    def _refuse_for(self, seconds: float) -> None:
        refuse = BUCKET_FOLDER / "refuse"
        refuse.touch()
        let_pass(seconds)
        refuse.unlink(missing_ok=True)

    # --- faults of the whole cluster ----------------------------------------------------------------------------------

    def inject_cluster_fault(self) -> None:
        """Inject one fault, and record it for each job that trains."""
        for _ in range(PARALLEL):
            self.injecting.acquire()
        try:
            faults = [(job, Fault("", time.time(), self.status(job))) for job in self.training()]
            moment = time.time()
            kind = self.random.choice(self.cluster_faults)()
            for job, fault in faults:
                fault.kind, fault.at = kind, moment
                fault.after, fault.recovered = self.wait_for_training(job, moment), time.time()
                job.faults.append(fault)
            print(f"cluster ({len(faults)} jobs): {kind}", flush=True)
        finally:
            self.injecting.release(PARALLEL)

    def kill_operator(self) -> str:
        kill("yolojob-operator", "yolojob_operator\0")
        let_pass(5)
        # A new pod, or the kubelet's back-off of five minutes would be measured after some kills.
        patiently(lambda: Kube(self.kube.kubeconfig, HOME).run("delete", "pods", "--all", "--wait=false"))
        return "kill -9 of the operator"

    def kill_api_server(self) -> str:
        processes.end("apiserver", signal.SIGKILL)
        let_pass(5)
        control_plane.start_api_server()
        return "kill -9 of the API server, 5 s away"

    def pause_etcd(self) -> str:
        pid = processes.running("etcd")
        assert pid is not None
        os.killpg(pid, signal.SIGSTOP)
        let_pass(10)
        os.killpg(pid, signal.SIGCONT)
        return "etcd paused for 10 s"

    def cut_api_server_off(self) -> str:
        node = settings.node_netns(self.random.randrange(2))
        for verb in ("add", "del"):
            route = ["ip", "route", verb, "blackhole", f"{settings.CONTROL_IP}/32"]
            subprocess.run(processes.inside(node, *route), check=True)
            if verb == "add":
                let_pass(25)
        return "a node without the API server for 25 s"

    def cut_power(self) -> str:
        node = self.random.randrange(2)
        devcluster("kill-node", str(node))
        let_pass(10)
        devcluster("start-node", str(node))
        return "power of a node cut for 10 s"

    def drain_node(self) -> str:
        node = f"node-{self.random.randrange(2)}"
        options = ("--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=60s")
        patiently(lambda: self.kube.run("drain", node, *options, check=False))
        patiently(lambda: self.kube.run("uncordon", node))
        return "node drained"


TRAINER = "yolojob_trainer\0"
"""End of a trainer's command line."""


def kill(pod: str, program: str) -> None:
    """Kill a program of one of the pods whose names begin so, from outside of the containers."""
    for pid in pids(pod, program)[:1]:
        os.kill(pid, signal.SIGKILL)


def pids(pod: str, program: str) -> list[int]:
    """Return the processes that run a program in the pods whose names begin so."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            variables = (entry / "environ").read_bytes().split(b"\0") if entry.name.isdigit() else []
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        host = next((v.partition(b"=")[2].decode() for v in variables if v.startswith(b"HOSTNAME=")), "")
        if (host == pod or host.startswith(f"{pod}-")) and program.encode() in command:
            found.append(int(entry.name))
    return found


def trained(folder: Path) -> list[tuple[float, tuple[int, int]]]:
    """(start, (epoch, step)) of every step in rank 0's trace."""
    steps = []
    for file in (folder / "trace" / "rank-0").glob("*.jsonl"):
        try:
            lines = file.read_text().splitlines()
        except OSError:
            continue
        for text in lines:
            try:
                line = json.loads(text)
            except ValueError:
                continue  # the disk was full
            if line.get("images"):
                steps.append((float(line["start"]), (int(line["epoch"]), int(line["step"]))))
    return sorted(steps)


def table(jobs: list[Job]) -> list[dict[str, Any]]:
    """One row for each kind of fault."""
    kinds: dict[str, list[tuple[Job, Fault]]] = {}
    for job in jobs:
        for fault in job.faults:
            kinds.setdefault(fault.kind, []).append((job, fault))
    rows = []
    for kind, affected in sorted(kinds.items()):
        pauses, lost = [], []
        for job, fault in affected:
            starts = [start for start, _ in trained(job.folder) if fault.at < start <= fault.recovered]
            pauses.append(max((b - a for a, b in pairwise([fault.at, *starts])), default=0.0))
            lost.append(max(fault.lost_seconds, 0.0))
        rows.append(
            {
                "fault": kind,
                "affected jobs": len(affected),
                "lost jobs": sum(job.status.get("phase") != "Succeeded" for job, _ in affected),
                "pause, median s": round(statistics.median(pauses), 1),
                "pause, longest s": round(max(pauses), 1),
                "repeated, mean s": round(statistics.fmean(lost), 1),
                "restarts": sum(fault.change("restarts") for _, fault in affected),
                "disruptions": sum(fault.change("disruptions") for _, fault in affected),
            }
        )
    return rows


@pytest.mark.usefixtures("operator")
def test_jobs_survive_random_faults(kube: Kube, tmp_path: Path) -> None:
    if not kube.is_devcluster:
        pytest.skip("cuts power and kills the control plane, which only the test cluster allows")
    start_bucket()
    kube.apply(clock_library(tmp_path))
    chaos = Chaos(kube)
    finished = threading.Event()

    def inject_cluster_faults() -> None:
        for _ in range(round(FAULTS * GLOBAL_SHARE)):
            eventually(lambda: finished.is_set() or len(chaos.training()) > 1, "jobs train", seconds=RECOVERY_SECONDS)
            let_pass(15)
            if finished.is_set():
                return
            chaos.inject_cluster_fault()

    def keep_scheduler() -> None:
        while not finished.wait(2):
            if processes.running("scheduler") is None:  # elsewhere a kubelet starts it again
                control_plane.start_scheduler()

    with ThreadPoolExecutor(PARALLEL + 2) as pool:
        pool.submit(keep_scheduler)
        injection = pool.submit(inject_cluster_faults)
        try:
            jobs = list(pool.map(chaos.train, range(JOBS)))
        finally:
            finished.set()
        injection.result()
    rows = table(jobs)
    for row in rows:
        print("  ".join(f"{name}={value}" for name, value in row.items()), flush=True)
    summary = {
        "jobs": len(jobs),
        "faults": sum(len(job.faults) for job in jobs),
        "lost": [job.name for job in jobs if job.status.get("phase") != "Succeeded"],
        "incomplete": [job.name for job in jobs if {s for _, s in trained(job.folder)} < every_step()],
    }
    print(json.dumps(summary), flush=True)
    if out := os.environ.get("YOLOJOB_CHAOS_OUT"):
        Path(out).write_text(json.dumps({"rows": rows, **summary}, indent=1))
    for job in jobs:
        if not job.in_bucket:
            subprocess.run(["umount", "-l", str(job.folder)], check=False)
    processes.end("bucket")
    assert summary["lost"] == []


def every_step() -> set[tuple[int, int]]:
    return {(epoch, step) for epoch in range(EPOCHS) for step in range(STEPS)}
