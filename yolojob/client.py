"""Jobs in a cluster, from Python: `Client().submit(job)`. Synchronous and typed; the command line stands on it.

Needs `pip install 'yolojob[client]'` and a kubeconfig, or a pod's own service account.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from yolojob import contract
from yolojob.contract import worker_name
from yolojob.errors import UserError
from yolojob.job import YoloTrainingJob
from yolojob.status import Report

log = logging.getLogger(__name__)

T = TypeVar("T")
Json = dict[str, Any]
Jsons = list[Json]
Change = Literal["ADDED", "MODIFIED", "DELETED"]
"""What a watch tells of a job."""

WATCH_SECONDS = 240
"""A watch is begun anew after so long; the API server ends it within five to ten minutes anyway."""
PATIENCE, PAUSE = 60.0, 1.0
"""Seconds for which a watch tries to come back, and between two tries."""
MOST_LINES = 10_000
"""Lines of logs that wait for a reader who is slow."""
TIMEOUT = (10, 60)
"""Seconds for connecting, and for an answer."""


class ClusterError(UserError):
    """The cluster does not do what it was asked, in words for people."""


class NotFound(ClusterError):
    """There is no such job."""


class Client:
    """One namespace of one cluster."""

    def __init__(self, context: str | None = None, namespace: str | None = None) -> None:
        """
        Args:
            context: of the kubeconfig (KUBECONFIG, or ~/.kube/config); its current one unless given.
            namespace: the context's own, or `default`, unless given.

        Raises:
            ClusterError: there is no kubeconfig, or no such context.
        """
        try:
            from kubernetes import client, config
        except ImportError:
            raise ClusterError("the Kubernetes client is missing: pip install 'yolojob[client]'") from None
        configuration = client.Configuration()
        own = _configure(config, configuration, context)
        self.namespace = namespace or own
        api = client.ApiClient(configuration)
        self._objects = client.CustomObjectsApi(api)
        self._core = client.CoreV1Api(api)

    def submit(self, job: YoloTrainingJob) -> YoloTrainingJob:
        """Create a job; what the API server made of it.

        Raises:
            ClusterError: there is one of this name already, or the API server refuses it.
        """
        body = job.to_json()
        body.pop("status", None)
        body["metadata"].pop("namespace", None)
        return self._job(lambda: self._objects.create_namespaced_custom_object(*self._where, body, **_IN_TIME))

    def get(self, name: str) -> YoloTrainingJob:
        """A job as it is now.

        Raises:
            NotFound: there is none of this name.
        """
        return self._job(lambda: self._objects.get_namespaced_custom_object(*self._where, name, **_IN_TIME), name)

    def list(self) -> list[YoloTrainingJob]:
        """All jobs of the namespace, by name."""
        found = self._call(lambda: self._objects.list_namespaced_custom_object(*self._where, **_IN_TIME))
        jobs = []
        for item in found["items"]:
            try:
                jobs.append(_read(item))
            except ClusterError as error:
                log.warning("%s", error)  # one odd job does not hide the others
        return jobs

    def watch(self, name: str | None = None, seconds: float | None = None) -> Iterator[tuple[Change, YoloTrainingJob]]:
        """Every change from now on, beginning with what is there, for ever or for so many seconds.

        A job that is not there yet is waited for. A connection that breaks is made anew, for as long as the API server is away
        no longer than PATIENCE.

        Raises:
            NotFound: the named job was deleted while nobody could tell.
            ClusterError: the API server refuses, or does not come back.
        """
        yield from self._watch(name, seconds, known=False)

    def _watch(
        self, name: str | None, seconds: float | None, *, known: bool
    ) -> Iterator[tuple[Change, YoloTrainingJob]]:
        """`watch`; whether the named job is known to have been there."""
        from kubernetes import watch

        deadline = None if seconds is None else time.monotonic() + seconds
        broken: float | None = None
        selector = {"field_selector": f"metadata.name={name}"} if name else {}
        version: str | None = None
        while deadline is None or time.monotonic() < deadline:
            left = WATCH_SECONDS if deadline is None else max(min(deadline - time.monotonic(), WATCH_SECONDS), 1)
            news = (
                self._now(name, known)
                if version is None  # a watch by itself would not tell of what is gone
                else watch.Watch().stream(
                    self._objects.list_namespaced_custom_object,
                    *self._where,
                    timeout_seconds=int(left),
                    resource_version=version,
                    _request_timeout=(TIMEOUT[0], left + TIMEOUT[1]),
                    **selector,
                )
            )
            try:
                for event in _answers(news, name or "", self.namespace):
                    broken = None
                    version = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        known = name is not None
                        yield event["type"], _read(event["object"])
            except _Expired:
                version = None  # too long ago: begin anew with what is there
            except _Broken as error:
                broken = broken or time.monotonic()
                if time.monotonic() - broken > PATIENCE:
                    raise ClusterError(str(error)) from None
                time.sleep(PAUSE)
            else:
                broken = None  # it was well until it ended by itself

    def wait(self, name: str, seconds: float | None = None) -> YoloTrainingJob:
        """Wait until a job has succeeded or failed.

        Raises:
            NotFound: there is none of this name, or it was deleted.
            TimeoutError: it has not ended within so many seconds.
        """
        self.get(name)
        for change, job in self._watch(name, seconds, known=True):
            if change == "DELETED":
                raise NotFound(f"{name} was deleted")
            if job.status and job.status.phase in ("Succeeded", "Failed"):
                return job
        raise TimeoutError(f"{name} has not ended within {seconds:.0f} s")

    def logs(
        self, name: str, worker: int | None = None, *, follow: bool = False, tail: int | None = None
    ) -> Iterator[tuple[int, str]]:
        """(worker, line) of one worker, or of all as they come.

        Args:
            name: the job.
            worker: its number; all of them unless given.
            follow: wait for the pods to start, and go on as lines come, until the pods end.
            tail: begin with so many of each worker's last lines; with its first one unless given.

        Raises:
            NotFound: there is no such job, or it has no such worker.
            ClusterError: a log could not be read; told when the others have ended.
        """
        job = self.get(name)
        replicas = job.spec.workers.replicas
        if worker is not None and not 0 <= worker < replicas:
            raise NotFound(f"{name} has no worker {worker}: there are {replicas}, from 0 to {replicas - 1}")
        pods = {i: pod for i, pod in self._workers(job).items() if worker in (None, i)}
        if not pods:
            raise NotFound(f"{name} has no pods now: they are made when it runs, and deleted by spec.runPolicy")
        lines: queue.Queue[tuple[int, str | ClusterError | None]] = queue.Queue(MOST_LINES)
        for i, pod in pods.items():
            threading.Thread(target=self._read_log, args=(i, pod, follow, tail, lines), daemon=True).start()
        left, error = len(pods), None
        while left:
            i, said = lines.get()
            if said is None:
                left -= 1
            elif isinstance(said, str):
                yield i, said
            else:
                error = said
        if error is not None:
            raise error

    def report(self, name: str) -> Report | None:
        """The last words of a job's first worker; none while it has not ended, and when its pod is gone."""
        try:
            pod = self._pod(worker_name(name, 0))
        except NotFound:
            return None
        for container in pod.get("status", {}).get("containerStatuses", []):
            message = (container.get("state", {}).get("terminated") or {}).get("message")
            if container["name"] == contract.CONTAINER and message:
                try:
                    return Report.model_validate_json(message)
                except ValidationError:
                    return None
        return None

    def hourly_cost(self, name: str) -> float | None:
        """What OpenCost says of the first worker's node, in the currency that it is set to; none where it is not installed.

        Its service is called opencost, in the namespace opencost, as its chart has it.
        """
        try:
            node = self._pod(worker_name(name, 0))["spec"].get("nodeName")
            answer = self._call(
                lambda: self._core.connect_get_namespaced_service_proxy_with_path(
                    *OPENCOST, _preload_content=False, **_IN_TIME
                )
            )
        except ClusterError:
            return None
        pattern = rf'^node_total_hourly_cost{{[^}}]*node="{re.escape(node or "")}"[^}}]*}} (\S+)$'
        found = re.search(pattern, answer.data.decode(), re.MULTILINE)
        return float(found[1]) if found else None

    def suspend(self, name: str) -> YoloTrainingJob:
        """Stop the pods and keep the checkpoint."""
        return self._patch(name, {"spec": {"runPolicy": {"suspend": True}}})

    def resume(self, name: str) -> YoloTrainingJob:
        """Let a suspended job go on."""
        return self._patch(name, {"spec": {"runPolicy": {"suspend": False}}})

    def scale(self, name: str, replicas: int) -> YoloTrainingJob:
        """Change the number of workers, of an elastic or a suspended job.

        Raises:
            ClusterError: the job is neither.
        """
        return self._patch(name, {"spec": {"workers": {"replicas": replicas}}})

    def delete(self, name: str) -> None:
        """Delete a job and its pods; what is in its storage stays.

        Raises:
            NotFound: there is none of this name.
        """
        self._call(lambda: self._objects.delete_namespaced_custom_object(*self._where, name, **_IN_TIME), name)

    def events(self, name: str) -> Jsons:
        """What the operator has told of a job, oldest first, as core/v1 Events."""
        selector = f"involvedObject.kind={contract.KIND},involvedObject.name={name}"
        answer = self._call(
            lambda: self._core.list_namespaced_event(
                self.namespace, field_selector=selector, _preload_content=False, **_IN_TIME
            )
        )
        items: Jsons = json.loads(answer.data)["items"]
        return sorted(items, key=lambda e: e.get("lastTimestamp") or e.get("eventTime") or "")

    @property
    def _where(self) -> tuple[str, str, str, str]:
        return contract.GROUP, contract.VERSION, self.namespace, contract.PLURAL

    def _now(self, name: str | None, known: bool) -> Iterator[Json]:
        """How the jobs are, or one of them, as a watch tells it first; and from where to go on.

        Raises:
            NotFound: the named job is known to have been there, and is not.
        """
        selector = {"field_selector": f"metadata.name={name}"} if name else {}
        found = self._objects.list_namespaced_custom_object(*self._where, **selector, **_IN_TIME)
        if known and name and not found["items"]:
            raise NotFound(f"{name} was deleted")
        for item in found["items"]:
            yield {"type": "ADDED", "object": item}
        yield {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": found["metadata"]["resourceVersion"]}}}

    def _patch(self, name: str, body: Json) -> YoloTrainingJob:
        return self._job(
            lambda: self._objects.patch_namespaced_custom_object(*self._where, name, body, **_IN_TIME), name
        )

    def _workers(self, job: YoloTrainingJob) -> dict[int, str]:
        """Names of a job's pods that train, by worker."""
        selector = f"{contract.LABEL_JOB}={job.metadata.name},!{contract.LABEL_SPARE}"
        answer = self._call(
            lambda: self._core.list_namespaced_pod(
                self.namespace, label_selector=selector, _preload_content=False, **_IN_TIME
            )
        )
        metadata = [item["metadata"] for item in json.loads(answer.data)["items"]]
        own = (m for m in metadata if any(o["uid"] == job.metadata.uid for o in m.get("ownerReferences") or ()))
        return dict(sorted((int(m["labels"][contract.LABEL_WORKER]), m["name"]) for m in own))

    def _pod(self, name: str) -> Json:
        answer = self._call(
            lambda: self._core.read_namespaced_pod(name, self.namespace, _preload_content=False, **_IN_TIME), name
        )
        return dict(json.loads(answer.data))

    def _open_log(self, pod: str, follow: bool, tail: int | None) -> Any:
        """A pod's log as it comes. Who follows it waits for its start."""
        from kubernetes.client import ApiException

        begin = {} if tail is None else {"tail_lines": tail}
        while True:
            try:
                return self._core.read_namespaced_pod_log(
                    pod,
                    self.namespace,
                    container=contract.CONTAINER,
                    follow=follow,
                    _preload_content=False,
                    # Who follows waits for words as long as it takes.
                    _request_timeout=(TIMEOUT[0], None if follow else TIMEOUT[1]),
                    **begin,
                )
            except ApiException as error:
                if not (follow and error.status == 400 and "waiting to start" in _words(error)):
                    raise
                time.sleep(PAUSE)

    def _read_log(
        self,
        worker: int,
        pod: str,
        follow: bool,
        tail: int | None,
        lines: queue.Queue[tuple[int, str | ClusterError | None]],
    ) -> None:
        try:
            answer = self._open_log(pod, follow, tail)
            rest = b""
            for block in answer.stream(4096):
                *whole, rest = (rest + block).split(b"\n")
                for text in whole:
                    lines.put((worker, text.decode(errors="replace")))
            if rest:
                lines.put((worker, rest.decode(errors="replace")))
        except Exception as error:  # noqa: BLE001 - of the client's many, each means the same here
            lines.put((worker, ClusterError(f"worker {worker}: no log: {_words(error)}")))
        finally:
            lines.put((worker, None))

    def _job(self, call: Callable[[], Json], name: str = "") -> YoloTrainingJob:
        return _read(self._call(call, name))

    def _call(self, call: Callable[[], T], name: str = "") -> T:
        """`call`, with the client's many errors in our words."""
        try:
            return call()
        except Exception as error:
            raise _translated(error, name, self.namespace) from error


OPENCOST = ("opencost:9003", "opencost", "metrics")
"""Service and port, namespace, path: https://www.opencost.io/docs/integrations/metrics"""


def contexts() -> list[str]:
    """Names of the kubeconfig's contexts; none where there is no kubeconfig."""
    try:
        from kubernetes import config
    except ImportError:
        return []
    try:
        return sorted(_contexts(config, os.environ.get("KUBECONFIG") or None)[0])
    except Exception:  # noqa: BLE001 - a file of whatever kind
        return []


_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_IN_TIME: Any = {"_request_timeout": TIMEOUT}


class _Broken(Exception):
    """The connection of a watch broke, or the API server has trouble of its own."""


class _Expired(Exception):
    """The watch begins with a version that the API server has forgotten."""


def _read(item: Json) -> YoloTrainingJob:
    """A job as the API server has it.

    Raises:
        ClusterError: it was stored by a version of us that knows more, or before its rules were made.
    """
    try:
        return YoloTrainingJob.model_validate(item)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        raise ClusterError(
            f"{item.get('metadata', {}).get('name')} cannot be read: {path}: {first['msg']}; "
            f"`kubectl get ytj --output yaml` shows it as it is"
        ) from None


def _configure(config: Any, configuration: Any, context: str | None) -> str:
    """Load a kubeconfig, or a pod's own identity; the namespace that it names."""
    # As it is now: the library has read it when it was imported.
    file = os.environ.get("KUBECONFIG") or None
    try:
        names, current = _contexts(config, file)
        wanted = context or current
        if wanted is None or wanted not in names:
            there = ", ".join(sorted(names)) or "none"
            which = "it names no current context" if wanted is None else f"no context {wanted!r} in it"
            raise ClusterError(f"kubeconfig: {which}; there is {there}. Choose one with --context")
        config.load_kube_config(file, context=wanted, client_configuration=configuration)
    except ClusterError:
        raise
    except Exception as error:  # noqa: BLE001 - of the libraries that read it, each has its own
        # A pod's own cluster is meant only where nobody names another.
        if context is None and file is None:
            try:
                config.load_incluster_config(client_configuration=configuration)
            except config.ConfigException:
                pass
            else:
                return _POD_NAMESPACE.read_text().strip() if _POD_NAMESPACE.exists() else "default"
        words = str(error) or type(error).__name__
        raise ClusterError(f"no cluster: {words}. Set KUBECONFIG, or make a cluster: docs/install.md") from None
    return str(names[wanted].get("namespace") or "default")


def _contexts(config: Any, file: str | None) -> tuple[dict[str, Json], str | None]:
    """(contexts by name, name of the current one) of the kubeconfig's files together.

    Raises:
        ConfigException: there is none.
    """
    merged = config.kube_config.KubeConfigMerger(file or config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION).config
    if merged is None:
        raise config.ConfigException("there is no kubeconfig")
    found = [node.value for node in merged.value["contexts"]]
    return {c["name"]: c.get("context") or {} for c in found}, merged.value.get("current-context")


def _answers(stream: Iterator[Json], name: str, namespace: str) -> Iterator[Json]:
    """A watch's events; its errors in our words."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield from stream
    except ApiException as error:
        if error.status == 410:
            raise _Expired from None
        if error.status == 429 or error.status >= 500:
            raise _Broken(_words(error)) from error
        raise _translated(error, name, namespace) from error
    except HTTPError as error:
        raise _Broken(str(_translated(error, name, namespace))) from error


def _translated(error: Exception, name: str, namespace: str) -> Exception:
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    if isinstance(error, ApiException):
        words = _words(error)
        if error.status == 404:
            if "could not find the requested resource" in words or "page not found" in words:
                return ClusterError("the cluster does not know YoloTrainingJobs: install the operator, docs/install.md")
            return NotFound(f"{words} in namespace {namespace}" if name in words and name else words)
        return ClusterError(words)
    if isinstance(error, HTTPError):
        return ClusterError(f"the cluster does not answer: {error}")
    return error


def _words(error: Exception) -> str:
    """The API server's own words."""
    try:
        return str(json.loads(getattr(error, "body", "") or "")["message"])
    except (ValueError, KeyError, TypeError):
        return str(getattr(error, "reason", "") or error)
