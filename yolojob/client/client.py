"""Jobs in a cluster, from Python: `Client().submit(job)`. Synchronous and typed; the command line stands on it.

Needs `pip install 'yolojob[client]'` and a kubeconfig, or a pod's own service account.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from pydantic import ValidationError

from yolojob.api import constants
from yolojob.api.constants import worker_name
from yolojob.api.errors import ClusterError, NotFound
from yolojob.api.job import YoloTrainingJob
from yolojob.api.trainer_report import Report
from yolojob.client import pod_logs
from yolojob.client.kubeconfig import configure
from yolojob.client.responses import Broken, Expired, Json, as_job, as_object, asked, events

__all__ = ["Change", "Client", "ClusterError", "NotFound"]

log = logging.getLogger(__name__)

Jsons = list[Json]
Change = Literal["ADDED", "MODIFIED", "DELETED"]
"""What a watch tells of a job."""

WATCH_SECONDS = 240
"""A watch is begun anew after so long; the API server ends it within five to ten minutes anyway."""
PATIENCE, PAUSE = 60.0, 1.0
"""Seconds for which a watch tries to come back, and between two tries."""
TIMEOUT = (10, 60)
"""Seconds for connecting, and for an answer."""

NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
"""Of objects: an RFC 1123 subdomain. The client puts names into paths as they are, where an empty one means all."""


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
            from kubernetes import client
        except ImportError:
            raise ClusterError("the Kubernetes client is missing: pip install 'yolojob[client]'") from None
        configuration = client.Configuration()
        configuration.retries = 1  # watches have a patience of their own, and who asks once wants to know
        own = configure(configuration, context)
        self.namespace = _name(namespace or own, "namespace")
        api = client.ApiClient(configuration)
        self._objects = client.CustomObjectsApi(api)
        self._core = client.CoreV1Api(api)

    def submit(self, job: YoloTrainingJob) -> YoloTrainingJob:
        """Create a job; what the API server made of it.

        Raises:
            ClusterError: there is one of this name already, it names another namespace, or the API server refuses it.
        """
        if job.metadata.namespace not in (None, self.namespace):
            raise ClusterError(
                f"metadata.namespace: {job.metadata.namespace}: it does not go to namespace {self.namespace}"
            )
        body = job.to_json()
        body.pop("status", None)
        body["metadata"].pop("namespace", None)
        return self._job(lambda: self._objects.create_namespaced_custom_object(*self._where, body, **_IN_TIME))

    def get(self, name: str) -> YoloTrainingJob:
        """A job as it is now.

        Raises:
            NotFound: there is none of this name.
        """
        _name(name)
        return self._job(lambda: self._objects.get_namespaced_custom_object(*self._where, name, **_IN_TIME), name)

    def list(self) -> list[YoloTrainingJob]:
        """All jobs of the namespace, by name."""
        found = as_object(self._call(lambda: self._objects.list_namespaced_custom_object(*self._where, **_IN_TIME)))
        return [job for item in found.get("items") or () if (job := self._seen(item, alone=False))]

    def watch(
        self, name: str | None = None, seconds: float | None = None, *, known: bool = False
    ) -> Iterator[tuple[Change, YoloTrainingJob]]:
        """Every change from now on, beginning with what is there, for ever or for so many seconds.

        A job that is not there yet is waited for. A connection that breaks is made anew, for as long as the API server is away
        no longer than PATIENCE; what went meanwhile is told as DELETED.

        Args:
            name: one job; all of the namespace unless given.
            seconds: for so long.
            known: the named job has been there; if it is not, it was deleted.

        Raises:
            NotFound: the named job was deleted while nobody could tell.
            ClusterError: the API server refuses, or does not come back.
        """
        if name is not None:
            _name(name)
        deadline = None if seconds is None else time.monotonic() + seconds
        broken: float | None = None
        selector = {"field_selector": f"metadata.name={name}"} if name else {}
        version: str | None = None
        there: dict[str, YoloTrainingJob] = {}
        while deadline is None or time.monotonic() < deadline:
            left = WATCH_SECONDS if deadline is None else max(min(deadline - time.monotonic(), WATCH_SECONDS), 1)
            # A watch by itself would not tell of what is gone.
            news = self._now(selector, there, left) if version is None else self._later(selector, version, left)
            try:
                for event in events(news, name or "", self.namespace):
                    broken = None
                    version = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] == "BOOKMARK":
                        if known and name and name not in there:
                            raise NotFound(f"{name} was deleted")
                    elif job := self._seen(event["object"], alone=name is not None):
                        known = name is not None
                        if event["type"] == "DELETED":
                            there.pop(job.metadata.name, None)
                            known = False
                        else:
                            there[job.metadata.name] = job
                        yield event["type"], job
            except Expired:
                version = None  # too long ago: begin anew with what is there
            except Broken as error:
                now = time.monotonic()
                broken = broken or now
                if now - broken > PATIENCE:
                    raise ClusterError(str(error)) from error
                time.sleep(PAUSE)

    @staticmethod
    def _seen(item: Json, *, alone: bool) -> YoloTrainingJob | None:
        """A job of several; none where it cannot be read: one odd job does not hide the others."""
        try:
            return as_job(item)
        except ClusterError as error:
            if alone:
                raise
            log.warning("%s", error)
            return None

    def wait(self, name: str, seconds: float | None = None) -> YoloTrainingJob:
        """Wait until a job has succeeded or failed.

        Args:
            name: the job.
            seconds: for so long; for ever unless given, and with 0 one look.

        Raises:
            NotFound: there is none of this name, or it was deleted.
            TimeoutError: it has not ended within so many seconds.
        """
        job = self.get(name)
        if job.has_ended:
            return job
        for change, job in self.watch(name, seconds, known=True):
            if change == "DELETED":
                raise NotFound(f"{name} was deleted")
            if job.has_ended:
                return job
        raise TimeoutError(f"{name} has not ended within {seconds:.0f} s")

    def logs(
        self, name: str, worker: int | None = None, *, follow: bool = False, tail: int | None = None
    ) -> Iterator[tuple[int, str]]:
        """(worker, line) of one worker, or of all as they come.

        Args:
            name: the job.
            worker: its number; all of them unless given.
            follow: wait for all pods to be made and to start, and go on as lines come, until they end.
            tail: begin with so many of each worker's last lines; with its first one unless given.

        Raises:
            NotFound: there is no such job, or it has no such worker.
            ClusterError: a log could not be read; told when the others have ended.
        """
        job = self.get(name)
        replicas = job.spec.workers.replicas
        if worker is not None and not 0 <= worker < replicas:
            raise NotFound(f"{name} has no worker {worker}: there are {replicas}, from 0 to {replicas - 1}")

        def pods() -> Mapping[int, str]:
            return {i: pod for i, pod in self._workers(job).items() if worker in (None, i)}

        def count() -> int:
            now = self.get(name)
            if now.has_ended:
                return 0
            return 1 if worker is not None else _gang_size(now)

        found = pod_logs.wanted(pods, count) if follow else pods()
        if not found:
            raise NotFound(f"{name} has no pods now: they are made when it runs, and deleted by spec.runPolicy")
        yield from pod_logs.lines(found, self._open_log, follow=follow, tail=tail, seconds=TIMEOUT[1])

    def report(self, name: str) -> Report | None:
        """The last words of a job's first worker; none while it has not ended, and when its pod is gone."""
        try:
            pod = self._pod(worker_name(name, 0))
        except NotFound:
            return None
        for container in pod.get("status", {}).get("containerStatuses", []):
            message = (container.get("state", {}).get("terminated") or {}).get("message")
            if container["name"] == constants.CONTAINER and message:
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
        _name(name)
        self._call(lambda: self._objects.delete_namespaced_custom_object(*self._where, name, **_IN_TIME), name)

    def events(self, name: str) -> Jsons:
        """What the operator has told of a job, oldest first, as core/v1 Events."""
        _name(name)
        selector = f"involvedObject.kind={constants.KIND},involvedObject.name={name}"
        answer = self._read(
            lambda: self._core.list_namespaced_event(
                self.namespace, field_selector=selector, _preload_content=False, **_IN_TIME
            )
        )
        items: Jsons = answer.get("items") or []
        return sorted(items, key=lambda e: e.get("lastTimestamp") or e.get("eventTime") or "")

    @property
    def _where(self) -> tuple[str, str, str, str]:
        return constants.GROUP, constants.VERSION, self.namespace, constants.PLURAL

    def _now(self, selector: Json, there: Mapping[str, YoloTrainingJob], seconds: float) -> Iterator[Json]:
        """How the jobs are, as a watch tells it first; and from where to go on.

        Args:
            selector: of the list.
            there: those that were told of before.
            seconds: that the list may take.
        """
        limit = (TIMEOUT[0], min(TIMEOUT[1], seconds))
        found = as_object(self._objects.list_namespaced_custom_object(*self._where, **selector, _request_timeout=limit))
        uids = {item["metadata"]["uid"] for item in found["items"]}
        for job in [job for job in there.values() if job.metadata.uid not in uids]:
            gone = job.to_json()
            gone["metadata"].setdefault("resourceVersion", "")
            yield {"type": "DELETED", "object": gone}
        for item in found["items"]:
            yield {"type": "ADDED", "object": item}
        yield {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": found["metadata"]["resourceVersion"]}}}

    def _later(self, selector: Json, version: str, seconds: float) -> Iterator[Json]:
        """What a watch tells from that version on, for so long."""
        from kubernetes import watch

        yield from watch.Watch().stream(
            self._objects.list_namespaced_custom_object,
            *self._where,
            timeout_seconds=int(seconds),
            resource_version=version,
            _request_timeout=(TIMEOUT[0], seconds + TIMEOUT[1]),
            **selector,
        )

    def _patch(self, name: str, body: Json) -> YoloTrainingJob:
        _name(name)
        return self._job(
            lambda: self._objects.patch_namespaced_custom_object(*self._where, name, body, **_IN_TIME), name
        )

    def _workers(self, job: YoloTrainingJob) -> dict[int, str]:
        """Names of a job's pods that train, by worker."""
        selector = f"{constants.LABEL_JOB}={job.metadata.name},!{constants.LABEL_SPARE}"
        answer = self._read(
            lambda: self._core.list_namespaced_pod(
                self.namespace, label_selector=selector, _preload_content=False, **_IN_TIME
            )
        )
        metadata = [item["metadata"] for item in answer.get("items") or ()]
        own = (m for m in metadata if any(o["uid"] == job.metadata.uid for o in m.get("ownerReferences") or ()))
        return dict(sorted((int(m["labels"][constants.LABEL_WORKER]), m["name"]) for m in own))

    def _pod(self, name: str) -> Json:
        return self._read(
            lambda: self._core.read_namespaced_pod(name, self.namespace, _preload_content=False, **_IN_TIME), name
        )

    def _open_log(self, pod: str, follow: bool, tail: int | None, seconds: float) -> Any:
        return self._core.read_namespaced_pod_log(
            pod,
            self.namespace,
            container=constants.CONTAINER,
            follow=follow,
            _preload_content=False,
            _request_timeout=(TIMEOUT[0], seconds),
            **({} if tail is None else {"tail_lines": tail}),
        )

    def _read(self, call: Callable[[], Any], name: str = "") -> Json:
        """What has been asked for raw."""
        return as_object(self._call(call, name).data)

    def _job(self, call: Callable[[], object], name: str = "") -> YoloTrainingJob:
        return as_job(self._call(call, name))

    def _call(self, call: Callable[[], Any], name: str = "") -> Any:
        return asked(call, name, self.namespace)


OPENCOST = ("opencost:9003", "opencost", "metrics")
"""Service and port, namespace, path: https://www.opencost.io/docs/integrations/metrics"""


_IN_TIME: Any = {"_request_timeout": TIMEOUT}


def _name(text: str, what: str = "NAME") -> str:
    """The text, if an object can be called so.

    Raises:
        ClusterError: it cannot.
    """
    if not NAME.fullmatch(text):
        raise ClusterError(
            f"{what}: {text!r}: must be lowercase letters, digits, '-' or '.', with a letter or digit at each end"
        )
    return text


def _gang_size(job: YoloTrainingJob) -> int:
    """Workers of the newest attempt, which may be fewer than are wished for."""
    history = job.status.history if job.status else []
    return history[-1].workers if history else job.spec.workers.replicas
