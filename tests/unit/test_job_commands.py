"""The verbs and the pinned Kubernetes client, over HTTP: an API server that says what a test wants."""

from __future__ import annotations

import http.server
import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from support import eventually, kubeconfig, minimal

from yolojob.api.errors import NotFound
from yolojob.api.job import YoloTrainingJob
from yolojob.client import Client, ClusterError

JOBS = "/apis/yolojob.dev/v1alpha1/namespaces/default/yolotrainingjobs"
PODS = "/api/v1/namespaces/default/pods"


YOLOJOB = [sys.executable, "-m", "yolojob.cli"]


class Api:
    """Jobs, pods and logs in memory."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: list[int] = []
        self.log: Callable[[str], tuple[int, bytes]] = lambda pod: (200, f"{pod} says\nso\n".encode())
        """(status, body) by pod."""
        self.raw: bytes | None = None
        """What every request is answered, if anything."""
        self.watched: Callable[[], list[dict[str, Any]]] = list
        self.listed: Callable[[], None] = lambda: None
        """Called before each list."""
        api = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_any(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                api.requests.append((self.command, self.path))
                status, content = api.answer(self.command, self.path, body)
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                kind = "text/plain" if isinstance(content, bytes) else "application/json"
                self.send_header("Content-Type", kind)
                if status != 204:
                    self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if status != 204:
                    self.wfile.write(data)

            do_GET = do_POST = do_PATCH = do_DELETE = do_any

            def log_message(self, *_: object) -> None:
                """Tests look at `requests`."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def add(self, name: str, phase: str = "Running", uid: str = "", **spec: Any) -> None:
        made = minimal(name, **{"workers": {"replicas": 2}, **spec})
        made["metadata"] |= {"uid": uid or f"uid-{name}", "resourceVersion": "5", "namespace": "default"}
        self.jobs[name] = {**made, "status": {"phase": phase}}

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        url = urlsplit(path)
        query = parse_qs(url.query)
        if self.raw is not None:
            return 200, self.raw
        if url.path.endswith("/log"):
            status, said = self.log(url.path.split("/")[-2])
            return (status, said) if status < 300 else (status, {"message": said.decode()})
        if url.path == PODS:
            return 200, {"items": [self.pod(i) for i in self.pods]}
        if url.path == JOBS and method == "GET":
            if "watch" in query:
                time.sleep(0.05)
                return 200, "\n".join(json.dumps(event) for event in self.watched()).encode() + b"\n"
            self.listed()
            return 200, {"metadata": {"resourceVersion": "10"}, "items": list(self.jobs.values())}
        if url.path == JOBS and method == "POST":
            return 201, {**body, "spec": {**body["spec"], "inventedLater": {"x": 1}}}
        name = url.path.removeprefix(f"{JOBS}/")
        if name in self.jobs and method in ("GET", "PATCH"):
            return 200, self.jobs[name]
        return 404, {"message": f'yolotrainingjobs.yolojob.dev "{name}" not found'}

    @staticmethod
    def pod(index: int) -> dict[str, Any]:
        labels = {"yolojob.dev/worker-index": str(index)}
        return {"metadata": {"name": f"a-worker-{index}", "labels": labels, "ownerReferences": [{"uid": "uid-a"}]}}


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    made = Api()
    address = f"http://127.0.0.1:{made.server.server_address[1]}"
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "config", "first", address, first="default")))
    yield made
    made.server.shutdown()


def run(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*YOLOJOB, *arguments], text=True, capture_output=True, timeout=60, check=False, **more)


@pytest.mark.parametrize("name", ["", ".", "..", "A", "a/b", "-a", "a b"])
def test_a_name_that_is_none_reaches_no_cluster(api: Api, name: str) -> None:
    """An empty one would mean all jobs of the namespace, and a dot as well."""
    api.add("a")
    client = Client()
    for deed in (client.delete, client.get, client.suspend, client.events, lambda it: list(client.logs(it))):
        with pytest.raises(ClusterError, match="NAME: "):
            deed(name)
    with pytest.raises(ClusterError, match="NAME: "):
        next(client.watch(name))
    assert api.requests == []


def test_an_empty_variable_deletes_nothing(api: Api) -> None:
    api.add("a")
    for verb in ("delete", "get"):
        done = run(verb, "")
        assert done.returncode == 2
        assert "NAME: ''" in done.stderr
    assert api.requests == []


@pytest.mark.parametrize("namespace", ["..", "a/b", "A"])
def test_a_namespace_that_is_none(api: Api, namespace: str) -> None:
    with pytest.raises(ClusterError, match="namespace: "):
        Client(namespace=namespace)


def test_the_first_file_that_names_a_current_context_counts(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for kubectl; else two tools that are used side by side would change two clusters."""
    other = kubeconfig(tmp_path / "other", "second", second="default")
    monkeypatch.setenv("KUBECONFIG", f"{os.environ['KUBECONFIG']}:{other}")
    assert Client().list() == []
    assert len(api.requests) == 1


class TestLogs:
    def test_of_all_workers_as_they_are(self, api: Api) -> None:
        api.add("a")
        api.pods = [0, 1]
        found = sorted(Client().logs("a"))
        assert found == [(0, "a-worker-0 says"), (0, "so"), (1, "a-worker-1 says"), (1, "so")]

    def test_followed_from_before_there_is_a_pod(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        """No pods, then one of two, then no node, then an image on its way: each is waited for."""
        monkeypatch.setattr("yolojob.client.pod_logs.PAUSE", 0.05)
        api.add("a", phase="Pending")
        answers = iter([(204, b""), (400, b'container "trainer" is waiting to start: ContainerCreating')] * 2)
        api.log = lambda pod: next(answers, (200, f"{pod} says\n".encode()))
        found: list[tuple[int, str]] = []
        reading = threading.Thread(target=lambda: found.extend(Client().logs("a", follow=True)), daemon=True)
        reading.start()
        eventually(lambda: sum(path.startswith(PODS) for _, path in api.requests) >= 2, "it asks for pods")
        api.pods = [0]
        before = len(api.requests)
        eventually(lambda: len(api.requests) > before + 3, "it asks again")
        assert not any("/log" in path for _, path in api.requests), "one of two is not all"
        api.pods = [0, 1]
        reading.join(10)
        assert sorted(found) == [(0, "a-worker-0 says"), (1, "a-worker-1 says")]

    def test_an_image_that_cannot_be_had_is_told(self, api: Api) -> None:
        api.add("a", phase="Pending")
        api.pods = [0, 1]
        words = b'container "trainer" is waiting to start: trying and failing to pull image'
        api.log = lambda pod: (400, words) if pod.endswith("0") else (200, b"here\n")
        with pytest.raises(ClusterError, match=r"worker 0: no log: .*failing to pull image"):
            list(Client().logs("a", follow=True))

    def test_a_job_that_ended_before_its_pods_came(self, api: Api) -> None:
        api.add("a", phase="Failed")
        with pytest.raises(NotFound, match="a has no pods now"):
            list(Client().logs("a", follow=True))

    def test_a_reader_who_has_enough(self, api: Api) -> None:
        api.add("a")
        api.pods = [0, 1]
        api.log = lambda pod: (200, b"x" * 100 + b"\n" + b"y" * 200_000)
        command = f"{shlex.join(YOLOJOB)} logs a | head -c 10; echo ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", command], text=True, capture_output=True, timeout=60, check=False)
        assert done.stdout.endswith("141\n"), "not the 1 of a training that failed"
        assert done.stderr == ""


class TestWatch:
    def test_of_a_job_that_is_gone_when_it_begins(self, api: Api) -> None:
        api.add("a")
        api.listed = api.jobs.clear
        done = run("watch", "a")
        assert (done.returncode, done.stderr.strip()) == (2, "error: a was deleted")

    def test_what_went_while_nobody_could_tell_is_deleted(self, api: Api) -> None:
        """The watch has expired; meanwhile one is gone, and another one has a namesake."""
        for name in ("a", "b", "c"):
            api.add(name)
        expired = {"type": "ERROR", "object": {"code": 410, "reason": "Expired", "message": "too old", "metadata": {}}}
        api.watched = lambda: [expired]
        told: list[tuple[str, str | None]] = []
        lists = [0]

        def listed() -> None:
            lists[0] += 1
            if lists[0] == 2:
                del api.jobs["b"]
                api.add("a", uid="another")

        api.listed = listed
        for change, job in Client().watch(seconds=10):
            told.append((change, job.metadata.uid))
            if len(told) == 7:
                break
        assert set(told[:3]) == {("ADDED", f"uid-{name}") for name in "abc"}
        assert set(told[3:5]) == {("DELETED", "uid-a"), ("DELETED", "uid-b")}
        assert set(told[5:]) == {("ADDED", "another"), ("ADDED", "uid-c")}

    def test_one_odd_job_does_not_end_it_for_the_others(self, api: Api) -> None:
        api.add("odd", train={"epochs": "many"})
        api.add("fine")
        assert next(Client().watch(seconds=5))[1].metadata.name == "fine"


def test_waiting_for_a_job_that_has_ended_takes_no_time(api: Api) -> None:
    api.add("a", phase="Succeeded")
    assert Client().wait("a", seconds=0).metadata.name == "a"
    api.add("b")
    with pytest.raises(TimeoutError):
        Client().wait("b", seconds=0)


def test_a_cluster_that_knows_more_fields_refuses_nothing(api: Api) -> None:
    made = Client().submit(YoloTrainingJob.model_validate(minimal("new")))
    assert made.metadata.name == "new"
    api.add("a")
    api.jobs["a"]["spec"]["workers"]["inventedLater"] = 1
    assert Client().suspend("a").spec.workers.replicas == 2


def test_a_job_goes_to_no_other_namespace_than_it_names(api: Api, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    claim = {"kind": "PersistentVolumeClaim", "metadata": {"name": "data"}}
    job = minimal("a")
    job["metadata"]["namespace"] = "training"
    path.write_text(yaml.safe_dump_all([claim, job]))
    done = run("submit", str(path), "--namespace", "default")
    assert done.returncode == 2
    assert "metadata.namespace: training" in done.stderr
    assert api.requests == []
    del job["metadata"]["namespace"]
    path.write_text(yaml.safe_dump_all([claim, job]))
    done = run("submit", str(path))
    assert done.returncode == 0
    assert "PersistentVolumeClaim/data: left alone; `kubectl apply" in done.stderr


@pytest.mark.parametrize("verb", [["get"], ["get", "a"], ["describe", "a"], ["logs", "a"], ["watch", "a"]])
def test_somebody_else_answers(api: Api, verb: list[str]) -> None:
    api.raw = b"<html>Please log in</html>"
    done = run(*verb)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "does not answer as a Kubernetes API server" in done.stderr


def test_a_full_disk_is_no_failed_training(api: Api) -> None:
    api.add("a")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*YOLOJOB, "get"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


def test_names_for_other_programs(api: Api) -> None:
    for name in ("a", "b"):
        api.add(name)
    assert run("get", "-o", "name").stdout.split() == [
        "yolotrainingjob.yolojob.dev/a",
        "yolotrainingjob.yolojob.dev/b",
    ]
