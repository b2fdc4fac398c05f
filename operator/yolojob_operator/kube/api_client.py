"""The one place that talks to the API server, and to the trainers' /progress. Plain dicts in and out."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, nullcontext
from datetime import UTC, datetime
from typing import Any, Self
from urllib.parse import quote, urlencode

import aiohttp
from kubernetes.aio import client, config
from kubernetes.aio.config.config_exception import ConfigException
from pydantic import ValidationError

from yolojob.api import constants
from yolojob.api.trainer_report import Report
from yolojob_operator.objects.pods import Object
from yolojob_operator.plan.pod_facts import PodFacts

COMPONENT = "yolojob-operator"
MAX_CONCURRENT_REQUESTS = 48
"""Requests under way at once, of all jobs together."""
MAX_PROGRESS_BYTES = 1 << 18
"""A report is some kilobytes; who sends more is not believed."""
TIMEOUT = 30.0
PROGRESS_TIMEOUT = 3.0
METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
LIST_METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
PAGE = 500
"""Objects of a list that are asked for at once: a thousand jobs' pods in one piece take 150 MB to read."""
KUEUE_VERSIONS = ("kueue.x-k8s.io/v1beta2", "kueue.x-k8s.io/v1beta1")


class ApiError(Exception):
    """A request that the API server refused, or did not answer."""

    def __init__(self, status: int, reason: str, message: str, retry_after: float = 0.0) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.retry_after = retry_after
        """Seconds that the API server asks to wait before the next try."""


class Conflict(ApiError):
    """409: it exists already, or it was changed meanwhile."""


Observe = Callable[[str, str, int, float], None]
"""Told of every request: method, resource, status (0: no answer), seconds."""

_LEASES = "/apis/coordination.k8s.io/v1/namespaces/{}/leases"
_PLURALS = {
    "Node": "nodes",
    "Pod": "pods",
    "Service": "services",
    "PodGroup": "podgroups",
    constants.KIND: constants.PLURAL,
}


def _collection(item: Object) -> str:
    version, namespace = item["apiVersion"], item["metadata"]["namespace"]
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    return f"{root}/namespaces/{namespace}/{_PLURALS[item['kind']]}"


def _resource(path: str) -> str:
    """pods, pods/proxy, yolotrainingjobs/status…"""
    _, _, rest = path.partition("?")[0].partition("/namespaces/")
    words = rest.split("/")[1:]
    if not words:
        return path.partition("?")[0].rpartition("/")[2]
    return f"{words[0]}/{words[2]}" if len(words) > 2 else words[0]


class ApiClient:
    """Requests of the operator."""

    def __init__(self, api: client.ApiClient, *, inside: bool, observe: Observe) -> None:
        self._api, self._observe = api, observe
        self.inside = inside
        """Pods are reached at their own addresses, not through the API server."""
        self._limit = asyncio.Semaphore(MAX_CONCURRENT_REQUESTS)
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PROGRESS_TIMEOUT))

    @classmethod
    async def connect(cls, observe: Observe = lambda *_: None) -> Self:
        """With the service account of a pod, else with KUBECONFIG.

        Args:
            observe: told of each request.

        Raises:
            ConfigException: neither is there.
        """
        try:
            config.load_incluster_config()
            inside = True
        except ConfigException:
            await config.load_kube_config()
            inside = False
        configuration = client.Configuration.get_default_copy()
        # No limit of its own: a lease would wait behind creations after all, for as long as a webhook takes.
        configuration.connection_pool_maxsize = 0
        # Else aiohttp looks for a .netrc before each request, in a thread.
        configuration.client_session_kwargs = {"trust_env": False}
        return cls(client.ApiClient(configuration), inside=inside, observe=observe)

    async def close(self) -> None:
        await self._http.close()
        await self._api.close()

    # --- requests -------------------------------------------------------------------------------------------------

    async def _request(
        self,
        method: str,
        path: str,
        body: Any = None,
        content_type: str = "application/json",
        accept: str = "",
        limit: AbstractAsyncContextManager[Any] | None = None,
    ) -> Object | None:
        """The answer; None where the object is not there.

        Args:
            method: GET, POST, PUT, PATCH or DELETE.
            path: from the API server's root, with the query.
            body: what is sent, as JSON.
            content_type: of the body.
            accept: of the answer; JSON unless given, and of a POST only the metadata.
            limit: what to wait for before the request; for one's turn among all requests unless given.

        Raises:
            Conflict: 409.
            ApiError: anything else.
        """
        # Of what we create we know the rest: its metadata is answer enough, and a tenth of the work.
        accept = accept or (METADATA_ONLY if method == "POST" else "application/json")
        headers = {"Accept": accept, "Content-Type": content_type, "User-Agent": COMPONENT}
        url = self._api.configuration.host + path
        async with limit or self._limit:
            status, began = 0, time.perf_counter()
            try:
                await self._api.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
                answer = await self._api.rest_client.request(
                    method, url, headers=headers, body=body, _request_timeout=TIMEOUT
                )
                data = await answer.read()
                status = answer.status
            except (aiohttp.ClientError, ConfigException, TimeoutError, OSError) as error:
                raise ApiError(0, "Unreachable", f"{method} {path}: {error or type(error).__name__}") from None
            finally:
                self._observe(method, _resource(path), status, time.perf_counter() - began)
        if status == 404 and method != "POST":
            return None
        if status >= 400:
            try:
                problem = json.loads(data)
            except (ValueError, RecursionError):
                problem = None
            problem = problem if isinstance(problem, dict) else {}
            kind = Conflict if status == 409 else ApiError
            message = problem.get("message") or f"{method} {path}"
            after = str(answer.headers.get("Retry-After") or "")
            raise kind(status, problem.get("reason") or "Refused", message, float(after) if after.isdigit() else 0.0)
        try:
            return dict(json.loads(data)) if data else {}
        except (ValueError, TypeError, RecursionError):
            raise ApiError(status, "Garbled", f"{method} {path}: the answer is no JSON object") from None

    async def create(self, item: Object) -> Object | None:
        """Create an object, and get its metadata; None where its name is taken.

        Raises:
            ApiError: it was refused, or its kind is unknown here (404).
        """
        try:
            return await self._request("POST", _collection(item), item)
        except Conflict as conflict:
            if conflict.reason != "AlreadyExists":
                raise
            return None

    async def get(self, item: Object) -> Object | None:
        """The object of this kind and name; None where there is none."""
        return await self._request("GET", f"{_collection(item)}/{item['metadata']['name']}")

    async def versions(self, kind: str, namespaces: Iterable[str]) -> dict[str, int]:
        """resourceVersion by uid of all pods that carry a job's label, of all jobs, or of all nodes.

        Args:
            kind: Pod, Node, or a job's.
            namespaces: where to look; everywhere, where there are none. One that we may not see was deleted, and our rights
                with it: nothing is there.

        Raises:
            ApiError: no answer, the kind is unknown (404), or none of the namespaces may be seen (403).
        """
        root = f"/apis/{constants.API_VERSION}" if kind == constants.KIND else "/api/v1"
        query = {"limit": PAGE, **({"labelSelector": constants.LABEL_JOB} if kind == "Pod" else {})}
        found: dict[str, int] = {}
        refused: list[ApiError] = []
        places = [f"/namespaces/{name}" for name in namespaces] or [""]
        for where in places:
            path = f"{root}{where}/{_PLURALS[kind]}?{urlencode(query)}"
            try:
                async for item in self._listed(path):
                    found[item["metadata"]["uid"]] = int(item["metadata"]["resourceVersion"])
            except ApiError as error:
                if error.status != 403:
                    raise
                refused.append(error)
        if len(refused) == len(places):
            raise refused[0]
        return found

    async def _listed(self, path: str) -> AsyncIterator[Object]:
        """Metadata of all objects of a list, which is asked for page by page."""
        more = ""
        while True:
            page = await self._request("GET", path + (f"&continue={more}" if more else ""), accept=LIST_METADATA_ONLY)
            if page is None:
                raise ApiError(404, "NotFound", f"GET {path}: the API server does not know it")
            for item in page.get("items") or ():
                yield item
            more = quote(str((page.get("metadata") or {}).get("continue") or ""))
            if not more:
                return

    async def update_spec(self, item: Object, found: Object) -> None:
        """Make an object's spec this one, if it is still as it was found."""
        patch = {
            "metadata": {"resourceVersion": found["metadata"]["resourceVersion"]},
            "spec": merge_patch(found.get("spec") or {}, item["spec"]),
        }
        path = f"{_collection(item)}/{item['metadata']['name']}"
        await self._request("PATCH", path, patch, "application/merge-patch+json")

    # Leases wait for no turn: behind a thousand pods that are to be created one would run out.

    async def get_lease(self, namespace: str, name: str) -> Object | None:
        return await self._request("GET", f"{_LEASES.format(namespace)}/{name}", limit=nullcontext())

    async def create_lease(self, lease: Object) -> Object | None:
        """The lease as it is then; None where somebody else was quicker."""
        path = _LEASES.format(lease["metadata"]["namespace"])
        try:
            return await self._request("POST", path, lease, accept="application/json", limit=nullcontext())
        except Conflict:
            return None

    async def replace_lease(self, lease: Object) -> Object | None:
        """The lease as it is then; None where somebody has changed it meanwhile, or it is gone."""
        metadata = lease["metadata"]
        path = f"{_LEASES.format(metadata['namespace'])}/{metadata['name']}"
        try:
            return await self._request("PUT", path, lease, limit=nullcontext())
        except Conflict:
            return None

    async def delete_pod(self, namespace: str, name: str, uid: str, grace_seconds: int | None) -> None:
        """Delete this very pod, not another one of its name."""
        options = {} if grace_seconds is None else {"gracePeriodSeconds": grace_seconds}
        await self._delete(f"/api/v1/namespaces/{namespace}/pods/{name}", uid, options)

    async def delete_if(self, item: Object, owned: Callable[[Object], bool]) -> None:
        """Delete the object of this kind and name where it is ours."""
        found = await self.get(item)
        if found is None or not owned(found):
            return
        await self._delete(f"{_collection(item)}/{item['metadata']['name']}", found["metadata"]["uid"], {})

    async def delete_workload(self, namespace: str, name: str) -> None:
        """Delete a Workload of Kueue's; that of an older Kueue, too."""
        for version in KUEUE_VERSIONS:
            path = f"/apis/{version}/namespaces/{namespace}/workloads/{name}"
            if await self._request("DELETE", path) is not None:
                return

    async def delete_job(self, namespace: str, name: str, uid: str) -> None:
        await self._delete(self._job_path(namespace, name), uid, {"propagationPolicy": "Background"})

    async def _delete(self, path: str, uid: str, options: Object) -> None:
        """Delete this very object, with further DeleteOptions."""
        preconditions = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}}
        try:
            await self._request("DELETE", path, {**preconditions, **options})
        except Conflict:
            return  # another one has the name by now: this one is gone

    async def post_event(self, body: Object, kind: str, reason: str, message: str) -> None:
        """A Kubernetes event about a job."""
        metadata = body["metadata"]
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{metadata['name']}-", "namespace": metadata["namespace"]},
            "involvedObject": {
                "apiVersion": constants.API_VERSION,
                "kind": constants.KIND,
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
            },
            "type": kind,
            "reason": reason,
            "message": message[:1024],
            "source": {"component": COMPONENT},
            "reportingComponent": COMPONENT,
            "reportingInstance": os.environ.get("HOSTNAME", COMPONENT),
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        await self._request("POST", f"/api/v1/namespaces/{metadata['namespace']}/events", event)

    async def patch_status(self, body: Object, status: Object) -> Object | None:
        """Write a status if the job is still as it was in `body`; the job as it is then, None where it is gone.

        Raises:
            Conflict: somebody changed the job meanwhile.
        """
        metadata = body["metadata"]
        patch = {
            "metadata": {"resourceVersion": metadata["resourceVersion"]},
            "status": merge_patch(body.get("status") or {}, status),
        }
        path = self._job_path(metadata["namespace"], metadata["name"]) + "/status"
        return await self._request("PATCH", path, patch, "application/merge-patch+json")

    async def progress(self, namespace: str, pod: PodFacts) -> Report | None:
        """What rank 0 says; None while it does not answer."""
        try:
            if self.inside:
                host = f"[{pod.ip}]" if ":" in pod.ip else pod.ip
                return Report.model_validate_json(await self._read(f"http://{host}:{constants.METRICS_PORT}/progress"))
            path = f"/api/v1/namespaces/{namespace}/pods/{pod.name}:{constants.METRICS_PORT}/proxy/progress"
            return Report.model_validate(await asyncio.wait_for(self._request("GET", path), PROGRESS_TIMEOUT))
        except (aiohttp.ClientError, TimeoutError, OSError, ValidationError, ApiError):
            return None

    async def _read(self, url: str) -> bytes:
        """What a pod says. Its owner decides what that is: we follow it nowhere else, and read no more than a report.

        Raises:
            ApiError: it says too much.
        """
        data = b""
        async with self._http.get(url, allow_redirects=False) as answer:
            async for block in answer.content.iter_any():
                data += block
                if len(data) > MAX_PROGRESS_BYTES:
                    raise ApiError(answer.status, "TooLarge", f"{url}: more than {MAX_PROGRESS_BYTES} bytes")
        return data

    @staticmethod
    def _job_path(namespace: str, name: str) -> str:
        return f"/apis/{constants.API_VERSION}/namespaces/{namespace}/{constants.PLURAL}/{name}"


def merge_patch(old: Object, new: Object) -> Object:
    """The JSON merge patch (RFC 7386) that makes `new` of `old`."""
    patch: Object = {name: None for name in old if name not in new}
    for name, value in new.items():
        before = old.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            if child := merge_patch(before, value):
                patch[name] = child
        elif value != before:
            patch[name] = value
    return patch
