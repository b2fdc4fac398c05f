"""A fake Kubernetes API server: jobs, pods and logs in memory, over HTTP."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

from support import minimal

JOBS = "/apis/yolojob.dev/v1alpha1/namespaces/default/yolotrainingjobs"
PODS = "/api/v1/namespaces/default/pods"
Object = dict[str, Any]
Response = tuple[int, Object | bytes]
"""(HTTP status, JSON object or raw body)."""


class FakeApiServer:
    """Serves the namespace `default` at `url` until `stop`; tests set its attributes to change its responses."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        """(method, path with query) of every request."""
        self.jobs: dict[str, Object] = {}
        self.pods: list[int] = []
        """Worker indexes of the pods that exist."""
        self.log: Callable[[str], tuple[int, bytes]] = lambda pod: (200, f"{pod} starts\nends\n".encode())
        """Returns (HTTP status, body) of a pod's log."""
        self.raw: bytes | None = None
        """Body of every response, if set."""
        self.watch_events: Callable[[], list[Object]] = list
        """Returns the events of a watch, which then ends."""
        self.on_list: Callable[[], None] = lambda: None
        """Called before the jobs are listed."""
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Stops the server."""
        self._server.shutdown()
        self._server.server_close()

    def add(self, name: str, phase: str = "Running", uid: str = "", **spec: Any) -> None:
        """Adds a job of two workers, with the given fields of the spec."""
        job = minimal(name, **{"workers": {"replicas": 2}, **spec})
        job["metadata"] |= {"uid": uid or f"uid-{name}", "resourceVersion": "5", "namespace": "default"}
        self.jobs[name] = {**job, "status": {"phase": phase}}

    def respond(self, method: str, path: str, body: Object | None) -> Response:
        """Returns the response to a request."""
        url = urlsplit(path)
        if self.raw is not None:
            return 200, self.raw
        if url.path.endswith("/log"):
            status, log = self.log(url.path.split("/")[-2])
            return (status, log) if status < 300 else (status, {"message": log.decode()})
        if url.path == PODS:
            return 200, {"items": [_pod(index) for index in self.pods]}
        if url.path == JOBS and method == "GET":
            if "watch" in parse_qs(url.query):
                return 200, "\n".join(json.dumps(event) for event in self.watch_events()).encode() + b"\n"
            self.on_list()
            return 200, {"metadata": {"resourceVersion": "10"}, "items": list(self.jobs.values())}
        if url.path == JOBS and method == "POST" and body is not None:
            return 201, {**body, "spec": {**body["spec"], "inventedLater": {"x": 1}}}
        name = url.path.removeprefix(f"{JOBS}/")
        if name in self.jobs and method in ("GET", "PATCH"):
            return 200, self.jobs[name]
        return 404, {"message": f'yolotrainingjobs.yolojob.dev "{name}" not found'}


def _pod(index: int) -> Object:
    labels = {"yolojob.dev/worker-index": str(index)}
    return {"metadata": {"name": f"a-worker-{index}", "labels": labels, "ownerReferences": [{"uid": "uid-a"}]}}


def _handler(server: FakeApiServer) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            server.requests.append((self.command, self.path))
            status, content = server.respond(self.command, self.path, body)
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if isinstance(content, bytes) else "application/json")
            if status != 204:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if status != 204:
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Prints nothing: tests read `requests`."""

    for method in ("GET", "POST", "PATCH", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.handle_any)
    return Handler
