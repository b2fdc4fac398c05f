"""HTTP client of the API server, and of the trainers' /progress. Plain dicts in and out.

`kubernetes.aio.dynamic` is not used: it discovers API groups first and wraps every response in nested objects. Plain
dicts, metadata-only responses and paged lists keep the operator fast and small with a thousand jobs (measured in
docs/benchmarks.md).
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator, Callable, Container, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self
from urllib.parse import quote, urlencode

import aiohttp
from kubernetes.aio import client, config
from kubernetes.aio.config.config_exception import ConfigException
from pydantic import ValidationError

from yolojob.api import constants
from yolojob.api.trainer_report import Report
from yolojob_operator.kube import json_reader
from yolojob_operator.kube.fair_slots import FairSlots
from yolojob_operator.kube.types import EventDraft, Object, merge_patch

COMPONENT = "yolojob-operator"
MAX_CONCURRENT_REQUESTS = 48
"""For all jobs together; the namespaces take turns."""
MAX_PROGRESS_BYTES = 1 << 18
"""A report has some kilobytes. A larger response is not read to its end."""
REQUEST_TIMEOUT_SECONDS = 30.0
PROGRESS_TIMEOUT_SECONDS = 3.0
JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"
METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
LIST_METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
LIST_PAGE_SIZE = 500
"""Objects in one page of a list. The pods of a thousand jobs in one piece take 150 MB to read."""
MAX_EVENT_MESSAGE_CHARS = 1024
"""Kubernetes' limit for the note of an event (events.k8s.io/v1)."""
KUEUE_VERSIONS = ("kueue.x-k8s.io/v1beta2", "kueue.x-k8s.io/v1beta1")


class ApiError(Exception):
    """A request that the API server refused or did not answer."""

    def __init__(self, status: int, reason: str, message: str, retry_after: float = 0.0) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.retry_after = retry_after
        """Seconds that the API server asks to wait before the next try."""


class Conflict(ApiError):
    """409: the object exists already, or it was changed in the meantime."""


Observe = Callable[[str, str, int, float], None]
"""Called after every request with the method, the resource, the status (0: no answer) and the duration in seconds."""

_LEASES = "/apis/coordination.k8s.io/v1/namespaces/{}/leases"
_PLURALS = {
    "Node": "nodes",
    "Pod": "pods",
    "Service": "services",
    "Secret": "secrets",
    "NetworkPolicy": "networkpolicies",
    "PodGroup": "podgroups",
    constants.KIND: constants.PLURAL,
}


def _collection(item: Object) -> str:
    version, namespace = item["apiVersion"], item["metadata"]["namespace"]
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    return f"{root}/namespaces/{namespace}/{_PLURALS[item['kind']]}"


def _path(item: Object) -> str:
    return f"{_collection(item)}/{item['metadata']['name']}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request to the API server."""

    method: str
    """GET, POST, PUT, PATCH or DELETE."""
    path: str
    """From the API server's root, with the query."""
    resource: str
    """For the metrics: pods, pods/proxy, yolotrainingjobs/status."""
    body: Any = None
    """Sent as JSON."""
    content_type: str = JSON
    accept: str = JSON
    queued: bool = True
    """Whether it counts in, and waits for, MAX_CONCURRENT_REQUESTS."""

    @property
    def namespace(self) -> str:
        """The namespace of its object; empty for a list of all namespaces."""
        return self.path.partition("/namespaces/")[2].partition("/")[0]


class ApiClient:
    """The operator's requests."""

    def __init__(self, api: client.ApiClient, *, inside: bool, observe: Observe) -> None:
        self._api, self._observe = api, observe
        self.inside = inside
        """Whether pods are reached at their own addresses, instead of through the API server's proxy."""
        self._slots = FairSlots(MAX_CONCURRENT_REQUESTS)
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PROGRESS_TIMEOUT_SECONDS))

    @classmethod
    async def connect(cls, observe: Observe = lambda *_: None) -> Self:
        """Connect with the service account of a pod, else with KUBECONFIG.

        Args:
            observe: called after every request.

        Raises:
            ConfigException: neither exists.
        """
        try:
            config.load_incluster_config()
            inside = True
        except ConfigException:
            await config.load_kube_config()
            inside = False
        configuration = client.Configuration.get_default_copy()
        # No limit in the connection pool: a lease renewal would wait behind creations for as long as a webhook takes.
        configuration.connection_pool_maxsize = 0
        # Otherwise aiohttp looks for a .netrc file before each request, in a thread.
        configuration.client_session_kwargs = {"trust_env": False}
        return cls(client.ApiClient(configuration), inside=inside, observe=observe)

    async def close(self) -> None:
        await self._http.close()
        await self._api.close()

    # --- requests -------------------------------------------------------------------------------------------------

    async def _send(self, request: Request) -> Object | None:
        """The response; None if the object does not exist.

        Raises:
            Conflict: 409.
            ApiError: any other error.
        """
        method, path = request.method, request.path
        headers = {"Accept": request.accept, "Content-Type": request.content_type, "User-Agent": COMPONENT}
        url = self._api.configuration.host + path
        async with self._slots.slot(request.namespace) if request.queued else nullcontext():
            status, began = 0, time.perf_counter()
            try:
                await self._api.update_params_for_auth(headers, [], ["BearerToken"], path, method, request.body)
                response = await self._api.rest_client.request(
                    method, url, headers=headers, body=request.body, _request_timeout=REQUEST_TIMEOUT_SECONDS
                )
                data = await response.read()
                status = response.status
            except (aiohttp.ClientError, ConfigException, TimeoutError, OSError) as error:
                raise ApiError(0, "Unreachable", f"{method} {path}: {error or type(error).__name__}") from None
            finally:
                self._observe(method, request.resource, status, time.perf_counter() - began)
        if status == 404 and method != "POST":
            return None
        if status >= 400:
            raise _refusal(request, status, data, str(response.headers.get("Retry-After") or ""))
        try:
            return dict(json_reader.loads(data)) if data else {}
        except (ValueError, TypeError):
            raise ApiError(status, "Garbled", f"{method} {path}: the response is not a JSON object") from None

    async def create(self, item: Object) -> Object | None:
        """Create an object and return its metadata; None if the name is taken.

        Raises:
            ApiError: the object was refused, or its kind is unknown here (404).
        """
        resource = _PLURALS[item["kind"]]
        try:
            # The rest of the created object is known: a response with only its metadata is a tenth of the work.
            return await self._send(
                Request(method="POST", path=_collection(item), resource=resource, body=item, accept=METADATA_ONLY)
            )
        except Conflict as conflict:
            if conflict.reason != "AlreadyExists":
                raise
            return None

    async def get(self, item: Object) -> Object | None:
        """The object of this kind and name; None if it does not exist."""
        return await self._send(Request(method="GET", path=_path(item), resource=_PLURALS[item["kind"]]))

    async def versions(self, kind: str, namespaces: Iterable[str]) -> dict[str, int]:
        """resourceVersion by uid of all pods that carry a job's label, of all jobs, or of all nodes.

        Args:
            kind: Pod, Node, or a job's kind.
            namespaces: the namespaces to list; all namespaces if it is empty. A namespace that may not be listed was
                deleted, and with it the operator's rights in it: it contributes nothing.

        Raises:
            ApiError: no answer, the kind is unknown (404), or none of the namespaces may be listed (403).
        """
        root = f"/apis/{constants.API_VERSION}" if kind == constants.KIND else "/api/v1"
        query = {"limit": LIST_PAGE_SIZE, **({"labelSelector": constants.LABEL_JOB} if kind == "Pod" else {})}
        versions: dict[str, int] = {}
        refused: list[ApiError] = []
        scopes = [f"/namespaces/{name}" for name in namespaces] or [""]
        for scope in scopes:
            path = f"{root}{scope}/{_PLURALS[kind]}?{urlencode(query)}"
            try:
                async for item in self._list(path, _PLURALS[kind]):
                    versions[item["metadata"]["uid"]] = int(item["metadata"]["resourceVersion"])
            except ApiError as error:
                if error.status != 403:
                    raise
                refused.append(error)
        if len(refused) == len(scopes):
            raise refused[0]
        return versions

    async def _list(self, path: str, resource: str) -> AsyncIterator[Object]:
        """Metadata of all objects of a list, requested page by page."""
        token = ""
        while True:
            page_path = path + (f"&continue={token}" if token else "")
            page = await self._send(Request(method="GET", path=page_path, resource=resource, accept=LIST_METADATA_ONLY))
            if page is None:
                raise ApiError(404, "NotFound", f"GET {path}: the API server does not serve this resource")
            for item in page.get("items") or ():
                yield item
            token = quote(str((page.get("metadata") or {}).get("continue") or ""))
            if not token:
                return

    async def update_spec(self, item: Object, existing: Object) -> None:
        """Give an existing object this spec, unless the object was changed in the meantime."""
        patch = {
            "metadata": {"resourceVersion": existing["metadata"]["resourceVersion"]},
            "spec": merge_patch(existing.get("spec") or {}, item["spec"]),
        }
        await self._patch(_path(item), _PLURALS[item["kind"]], patch)

    async def _patch(self, path: str, resource: str, patch: Object) -> Object | None:
        return await self._send(
            Request(method="PATCH", path=path, resource=resource, body=patch, content_type=MERGE_PATCH)
        )

    # Requests for leases are not queued: behind a thousand pods to create, a lease would expire.

    async def get_lease(self, namespace: str, name: str) -> Object | None:
        path = f"{_LEASES.format(namespace)}/{name}"
        return await self._send(Request(method="GET", path=path, resource="leases", queued=False))

    async def create_lease(self, lease: Object) -> Object | None:
        """The created lease; None if another client created it first."""
        path = _LEASES.format(lease["metadata"]["namespace"])
        return await self._write_lease("POST", path, lease)

    async def replace_lease(self, lease: Object) -> Object | None:
        """The written lease; None if it was changed in the meantime, or deleted."""
        metadata = lease["metadata"]
        return await self._write_lease("PUT", f"{_LEASES.format(metadata['namespace'])}/{metadata['name']}", lease)

    async def _write_lease(self, method: str, path: str, lease: Object) -> Object | None:
        try:
            return await self._send(Request(method=method, path=path, resource="leases", body=lease, queued=False))
        except Conflict:
            return None

    async def delete_pod(self, namespace: str, name: str, uid: str, grace_seconds: int | None) -> None:
        """Delete the pod with this uid, and not another one with its name."""
        options = {} if grace_seconds is None else {"gracePeriodSeconds": grace_seconds}
        await self._delete(f"/api/v1/namespaces/{namespace}/pods/{name}", "pods", uid, options)

    async def delete_if(self, item: Object, owned: Callable[[Object], bool]) -> None:
        """Delete the object of this kind and name if `owned` returns True for it."""
        existing = await self.get(item)
        if existing is None or not owned(existing):
            return
        await self._delete(_path(item), _PLURALS[item["kind"]], existing["metadata"]["uid"], {})

    async def delete_workload(self, namespace: str, name: str, pod_uids: Container[str]) -> None:
        """Delete a Workload of Kueue, in the newest API version that is served.

        Args:
            namespace: of the Workload.
            name: of the Workload; a pod's label holds it, which anybody may write.
            pod_uids: pods of which the Workload must be owned by one.
        """
        for version in KUEUE_VERSIONS:
            path = f"/apis/{version}/namespaces/{namespace}/workloads/{name}"
            found = await self._send(Request(method="GET", path=path, resource="workloads"))
            if found is not None:
                owners = found["metadata"].get("ownerReferences") or ()
                if any(owner.get("uid") in pod_uids for owner in owners):
                    await self._delete(path, "workloads", found["metadata"]["uid"], {})
                return

    async def delete_job(self, namespace: str, name: str, uid: str) -> None:
        path = self._job_path(namespace, name)
        await self._delete(path, constants.PLURAL, uid, {"propagationPolicy": "Background"})

    async def _delete(self, path: str, resource: str, uid: str, options: Object) -> None:
        """Delete the object with this uid, with further DeleteOptions."""
        preconditions = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}}
        body = {**preconditions, **options}
        try:
            await self._send(Request(method="DELETE", path=path, resource=resource, body=body))
        except Conflict:
            return  # the object is gone, and a new one has its name

    async def post_event(self, body: Object, event: EventDraft) -> None:
        """Post a Kubernetes event about a job, unless it was posted before.

        Raises:
            ApiError: it is refused.
        """
        metadata = body["metadata"]
        # Reason and occasion determine the name, so that the same event cannot exist twice.
        digest = hashlib.sha256(f"{metadata['uid']} {event.reason} {event.occasion}".encode()).hexdigest()[:16]
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        document = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{metadata['name']}.{digest}", "namespace": metadata["namespace"]},
            "involvedObject": {
                "apiVersion": constants.API_VERSION,
                "kind": constants.KIND,
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
            },
            "type": event.type,
            "reason": event.reason,
            "message": event.message[:MAX_EVENT_MESSAGE_CHARS],
            "source": {"component": COMPONENT},
            "reportingComponent": COMPONENT,
            "reportingInstance": os.environ.get("HOSTNAME", COMPONENT),
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        path = f"/api/v1/namespaces/{metadata['namespace']}/events"
        try:
            await self._send(Request(method="POST", path=path, resource="events", body=document, accept=METADATA_ONLY))
        except Conflict:
            return

    async def patch_status(self, body: Object, status: Object) -> Object | None:
        """Write a job's status if the job is still at the resourceVersion of `body`.

        Returns:
            The job as written; None if it is gone.

        Raises:
            Conflict: the job was changed in the meantime.
        """
        metadata = body["metadata"]
        patch = {
            "metadata": {"resourceVersion": metadata["resourceVersion"]},
            "status": merge_patch(body.get("status") or {}, status),
        }
        path = self._job_path(metadata["namespace"], metadata["name"]) + "/status"
        return await self._patch(path, f"{constants.PLURAL}/status", patch)

    async def progress(self, namespace: str, pod_name: str, pod_ip: str) -> Report | None:
        """The report of the trainer in a pod; None while it does not answer.

        Args:
            namespace: of the pod.
            pod_name: its name, for requests through the API server.
            pod_ip: its address, for requests from inside the cluster.
        """
        try:
            if self.inside:
                host = f"[{pod_ip}]" if ":" in pod_ip else pod_ip
                return Report.model_validate_json(await self._read(f"http://{host}:{constants.METRICS_PORT}/progress"))
            path = f"/api/v1/namespaces/{namespace}/pods/{pod_name}:{constants.METRICS_PORT}/proxy/progress"
            request = Request(method="GET", path=path, resource="pods/proxy")
            return Report.model_validate(await asyncio.wait_for(self._send(request), PROGRESS_TIMEOUT_SECONDS))
        except (aiohttp.ClientError, TimeoutError, OSError, ValidationError, ApiError):
            return None

    async def _read(self, url: str) -> bytes:
        """The response of a pod. The pod's owner controls it: no redirect is followed, and no more than a report is
        read.

        Raises:
            ApiError: the response is too large.
        """
        data = b""
        async with self._http.get(url, allow_redirects=False) as response:
            async for block in response.content.iter_any():
                data += block
                if len(data) > MAX_PROGRESS_BYTES:
                    raise ApiError(response.status, "TooLarge", f"{url}: more than {MAX_PROGRESS_BYTES} bytes")
        return data

    @staticmethod
    def _job_path(namespace: str, name: str) -> str:
        return f"/apis/{constants.API_VERSION}/namespaces/{namespace}/{constants.PLURAL}/{name}"


def _refusal(request: Request, status: int, data: bytes, retry_after: str) -> ApiError:
    """The error of a response with status 400 or higher."""
    try:
        problem = json_reader.loads(data)
    except ValueError:
        problem = None
    problem = problem if isinstance(problem, dict) else {}
    kind = Conflict if status == 409 else ApiError
    message = problem.get("message") or f"{request.method} {request.path}"
    seconds = float(retry_after) if retry_after.isdigit() else 0.0
    return kind(status, problem.get("reason") or "Refused", message, seconds)
