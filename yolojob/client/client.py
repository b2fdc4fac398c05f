"""Jobs in a cluster, from Python: `Client().submit(job)`. Synchronous and typed; the command line uses it.

Needs `pip install 'yolojob[client]'` and a kubeconfig, or a pod's service account.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from yolojob.api import constants
from yolojob.api.constants import worker_name
from yolojob.api.errors import ClusterError, NotFound
from yolojob.api.job import YoloTrainingJob
from yolojob.api.trainer_report import Report
from yolojob.client import pod_logs
from yolojob.client.job_watch import CONNECT_TIMEOUT_SECONDS, RESPONSE_TIMEOUT_SECONDS, Change, JobWatch
from yolojob.client.kubeconfig import configure
from yolojob.client.responses import Json, as_job, as_job_or_skip, as_object, call_api

__all__ = ["Change", "Client", "ClusterError", "NotFound"]

JsonList = list[Json]

OBJECT_NAME_PATTERN = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
"""An RFC 1123 subdomain. The Kubernetes client puts names into paths unchanged, where an empty name means all
objects."""
OPENCOST = ("opencost:9003", "opencost", "metrics")
"""Service and port, namespace, path: https://www.opencost.io/docs/integrations/metrics"""
REQUEST_TIMEOUT = (CONNECT_TIMEOUT_SECONDS, RESPONSE_TIMEOUT_SECONDS)


class Client:
    """Jobs of one namespace of one cluster."""

    def __init__(self, context: str | None = None, namespace: str | None = None) -> None:
        """
        Args:
            context: context of the kubeconfig (KUBECONFIG, or ~/.kube/config). Default: its current context.
            namespace: namespace of the jobs. Default: the context's, or `default`.

        Raises:
            ClusterError: there is no kubeconfig, or no such context.
        """
        try:
            from kubernetes import client
        except ImportError:
            raise ClusterError("the Kubernetes client is missing: pip install 'yolojob[client]'") from None
        configuration = client.Configuration()
        configuration.retries = 1  # a watch reconnects by itself, and other requests should fail early
        context_namespace = configure(configuration, context)
        self.namespace = _check_name(namespace or context_namespace, "namespace")
        api = client.ApiClient(configuration)
        self._objects = client.CustomObjectsApi(api)
        self._core = client.CoreV1Api(api)

    def submit(self, job: YoloTrainingJob) -> YoloTrainingJob:
        """Create a job. Returns it as the API server stored it.

        Raises:
            ClusterError: a job of this name exists, the job names another namespace, or the API server rejects it.
        """
        if job.metadata.namespace not in (None, self.namespace):
            raise ClusterError(
                f'metadata.namespace is "{job.metadata.namespace}", but the namespace is "{self.namespace}"'
            )
        body = job.to_json()
        body.pop("status", None)
        body["metadata"].pop("namespace", None)
        return as_job(self._request(self._objects.create_namespaced_custom_object, *self._path, body))

    def get(self, name: str) -> YoloTrainingJob:
        """The current state of a job.

        Raises:
            NotFound: no job has this name.
        """
        _check_name(name)
        return as_job(self._request(self._objects.get_namespaced_custom_object, *self._path, name, about=name))

    def list(self) -> list[YoloTrainingJob]:
        """All jobs of the namespace, by name."""
        response = as_object(self._request(self._objects.list_namespaced_custom_object, *self._path))
        return [job for item in response.get("items") or () if (job := as_job_or_skip(item))]

    def watch(
        self, name: str | None = None, seconds: float | None = None, *, known: bool = False
    ) -> Iterator[tuple[Change, YoloTrainingJob]]:
        """Report the existing jobs, and then every change.

        A named job may be created later. If the connection breaks, the watch reconnects, unless the API server is away
        for more than 60 s; jobs that were deleted meanwhile are reported as DELETED.

        Args:
            name: name of one job. Default: all jobs of the namespace.
            seconds: duration of the watch. Default: without end.
            known: the named job has existed; if it is missing, it was deleted.

        Raises:
            NotFound: the named job was deleted while the watch was not connected.
            ClusterError: the API server rejects the watch, or does not answer.
        """
        if name is not None:
            _check_name(name)
        yield from JobWatch(self._objects, self.namespace, name, seconds, must_exist=known).changes()

    def wait(self, name: str, seconds: float | None = None) -> YoloTrainingJob:
        """Wait until a job has succeeded or failed.

        Args:
            name: name of the job.
            seconds: time limit; 0 checks once. Default: without limit.

        Raises:
            NotFound: no job has this name, or it was deleted.
            TimeoutError: the job has not ended within this time.
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
    ) -> Generator[tuple[int, str], None, None]:
        """The log lines of one worker, or of all workers as they come: (worker, line).

        Args:
            name: name of the job.
            worker: number of one worker. Default: all workers.
            follow: wait until all pods exist and have started, and read new lines until the pods end.
            tail: start with this many last lines of each worker. Default: with the first line.

        Raises:
            NotFound: the job does not exist, has no such worker, or has no pods.
            ClusterError: a log could not be read; raised after the other logs have ended.
        """
        job = self.get(name)
        replicas = job.spec.workers.replicas
        if worker is not None and not 0 <= worker < replicas:
            raise NotFound(f"{name} has no worker {worker}: there are {replicas}, from 0 to {replicas - 1}")

        def existing_pods() -> Mapping[int, str]:
            return {index: pod for index, pod in self._workers(job).items() if worker in (None, index)}

        def expected_count() -> int:
            current = self.get(name)
            if current.has_ended:
                return 0
            return 1 if worker is not None else _attempt_size(current)

        pods = pod_logs.wait_for_pods(existing_pods, expected_count) if follow else existing_pods()
        if not pods:
            raise NotFound(f"{name} has no pods now: they exist while the job runs, and as long as spec.runPolicy says")
        yield from pod_logs.read_logs(pods, self._open_log, pod_logs.LogOptions(follow=follow, tail=tail))

    def report(self, name: str) -> Report | None:
        """The final report of a job's first worker; None while the worker runs, and after its pod was deleted."""
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
        """OpenCost's price of the first worker's node, in OpenCost's currency; None if OpenCost is not installed.

        OpenCost is expected as service `opencost` in namespace `opencost`, its chart's defaults.
        """
        try:
            node = self._pod(worker_name(name, 0))["spec"].get("nodeName")
            method = self._core.connect_get_namespaced_service_proxy_with_path
            response = self._request(method, *OPENCOST, _preload_content=False)
        except ClusterError:
            return None
        pattern = rf'^node_total_hourly_cost{{[^}}]*node="{re.escape(node or "")}"[^}}]*}} (\S+)$'
        match = re.search(pattern, response.data.decode(), re.MULTILINE)
        return float(match[1]) if match else None

    def suspend(self, name: str) -> YoloTrainingJob:
        """Stop the job's pods and keep its checkpoint."""
        return self._patch(name, {"spec": {"runPolicy": {"suspend": True}}})

    def resume(self, name: str) -> YoloTrainingJob:
        """Resume a suspended job."""
        return self._patch(name, {"spec": {"runPolicy": {"suspend": False}}})

    def scale(self, name: str, replicas: int) -> YoloTrainingJob:
        """Change the number of workers of an elastic or a suspended job.

        Raises:
            ClusterError: the job is neither elastic nor suspended.
        """
        return self._patch(name, {"spec": {"workers": {"replicas": replicas}}})

    def delete(self, name: str) -> None:
        """Delete a job and its pods; its storage is kept.

        Raises:
            NotFound: no job has this name.
        """
        _check_name(name)
        self._request(self._objects.delete_namespaced_custom_object, *self._path, name, about=name)

    def events(self, name: str) -> JsonList:
        """The operator's events about a job, the oldest first, as core/v1 Events."""
        _check_name(name)
        selector = f"involvedObject.kind={constants.KIND},involvedObject.name={name}"
        response = self._read(self._core.list_namespaced_event, self.namespace, field_selector=selector)
        items: JsonList = response.get("items") or []
        return sorted(items, key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "")

    @property
    def _path(self) -> tuple[str, str, str, str]:
        return constants.GROUP, constants.VERSION, self.namespace, constants.PLURAL

    def _patch(self, name: str, body: Json) -> YoloTrainingJob:
        _check_name(name)
        return as_job(self._request(self._objects.patch_namespaced_custom_object, *self._path, name, body, about=name))

    def _workers(self, job: YoloTrainingJob) -> dict[int, str]:
        """Names of the job's worker pods, without spares, by worker."""
        selector = f"{constants.LABEL_JOB}={job.metadata.name},!{constants.LABEL_SPARE}"
        response = self._read(self._core.list_namespaced_pod, self.namespace, label_selector=selector)
        metadata = [item["metadata"] for item in response.get("items") or ()]
        owned = (m for m in metadata if any(o["uid"] == job.metadata.uid for o in m.get("ownerReferences") or ()))
        return dict(sorted((int(m["labels"][constants.LABEL_WORKER]), m["name"]) for m in owned))

    def _pod(self, name: str) -> Json:
        return self._read(self._core.read_namespaced_pod, name, self.namespace, about=name)

    def _open_log(self, pod: str, options: pod_logs.LogOptions) -> Any:
        """The response with a pod's log, not read yet. It raises the Kubernetes client's own errors."""
        seconds = pod_logs.MAX_FOLLOW_SECONDS if options.follow else RESPONSE_TIMEOUT_SECONDS
        return self._core.read_namespaced_pod_log(
            pod,
            self.namespace,
            container=constants.CONTAINER,
            follow=options.follow,
            _preload_content=False,
            _request_timeout=(CONNECT_TIMEOUT_SECONDS, seconds),
            **({} if options.tail is None else {"tail_lines": options.tail}),
        )

    def _read(self, method: Callable[..., Any], *arguments: Any, about: str = "", **options: Any) -> Json:
        """The JSON object of a response, without the Kubernetes client's own models."""
        return as_object(self._request(method, *arguments, about=about, _preload_content=False, **options).data)

    def _request(self, method: Callable[..., Any], *arguments: Any, about: str = "", **options: Any) -> Any:
        """Call a method of the Kubernetes client, with a timeout.

        Args:
            method: the method.
            arguments: its arguments.
            about: name of the object of the request, for the message of an error.
            options: its keyword arguments.

        Raises:
            ClusterError: the request failed.
        """
        return call_api(lambda: method(*arguments, _request_timeout=REQUEST_TIMEOUT, **options), about, self.namespace)


def _check_name(text: str, field: str = "NAME") -> str:
    """The text, if it is a valid name of an object.

    Raises:
        ClusterError: it is not.
    """
    if not OBJECT_NAME_PATTERN.fullmatch(text):
        raise ClusterError(
            f"{field}: {text!r}: must be lowercase letters, digits, '-' or '.', with a letter or digit at each end"
        )
    return text


def _attempt_size(job: YoloTrainingJob) -> int:
    """Number of workers of the newest attempt, which may be fewer than spec.workers.replicas."""
    history = job.status.history if job.status else []
    return history[-1].workers if history else job.spec.workers.replicas
