"""Registers the watches with kopf and passes their events to the reconciler. No finalizers, no webhooks, no
decisions.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import kopf

from yolojob.api import constants
from yolojob_operator.control import leader_election
from yolojob_operator.control.metrics import OperatorMetrics
from yolojob_operator.control.reconciler import Reconciler, WatchCache
from yolojob_operator.kopf_app import http_server
from yolojob_operator.kopf_app.indices import Indices
from yolojob_operator.kopf_app.kopf_patches import decode_objects_singly
from yolojob_operator.kopf_app.null_storage import NoDiffBase, NoProgress
from yolojob_operator.kube.api_client import ApiClient, ApiError
from yolojob_operator.kube.types import Key
from yolojob_operator.objects.defaults import Defaults
from yolojob_operator.plan.node_facts import NodeFacts, node_facts
from yolojob_operator.plan.pod_facts import PodFacts, pod_facts

log = logging.getLogger(__name__)

CRD_CHECK_INTERVAL_SECONDS = 2.0
"""Between two checks whether the API server serves YoloTrainingJobs."""
WORKER_PODS: dict[str, Any] = {constants.LABEL_JOB: kopf.PRESENT}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of this installation."""

    defaults: Defaults
    namespaces: tuple[str, ...]
    """The watched namespaces; all if it is empty."""
    lease_namespace: str
    """Namespace of the lease that selects the leader."""
    listen: str
    """HOST:PORT of /metrics and /healthz; empty: no HTTP server."""


class EndlessBackoff:
    """Seconds between the retries of kopf's own requests. If they ran out, kopf would end its watches and itself."""

    def __iter__(self) -> Iterator[float]:
        return itertools.chain((1, 1, 2, 3, 5, 8, 13, 21), itertools.repeat(30))


@kopf.on.startup()
async def startup(settings: kopf.OperatorSettings, memo: Any, **_: Any) -> None:
    # kopf keeps a per-object worker alive for this long after its last event; its default of 5 s costs 100 MB at 1,000
    # jobs.
    settings.queueing.idle_timeout = 0.5
    settings.networking.error_backoffs = EndlessBackoff()
    # A handler's label filter is applied by kopf itself: without this the API server would send every pod of the
    # cluster.
    settings.watching.label_selectors["pods"] = constants.LABEL_JOB
    settings.peering.standalone = True
    settings.scanning.disabled = True
    settings.posting.reporting_component = "yolojob-operator"
    # A name that no job has: kopf would try to remove it.
    settings.persistence.finalizer = f"{constants.GROUP}/never-used-{secrets.token_hex(8)}"
    settings.persistence.diffbase_storage = NoDiffBase()
    settings.persistence.progress_storage = NoProgress()
    given: Settings = memo.settings
    memo.stack = stack = AsyncExitStack()
    memo.indices = Indices(clusterwide=not given.namespaces)
    metrics = OperatorMetrics(lambda: memo.reconciler.statuses())
    decode_objects_singly(metrics.unreadable.inc)

    def observe(method: str, resource: str, status: int, seconds: float) -> None:
        metrics.requests.labels(method, resource, status).inc()
        metrics.request_seconds.labels(method).observe(seconds)

    api = await ApiClient.connect(observe)
    stack.push_async_callback(api.close)
    indices = memo.indices
    cache = WatchCache(pods_of=indices.pods, all_pods=indices.all_pods, nodes=indices.nodes)
    memo.reconciler = Reconciler(api, given.defaults, metrics, given.namespaces, cache)
    metrics.watch_lag_seconds.set_function(memo.reconciler.watch_lag)
    if given.listen:
        server = http_server.serve(given.listen, metrics.registry, memo.reconciler.unhealthy_reason)
        stack.callback(server.server_close)
        stack.push_async_callback(asyncio.to_thread, server.shutdown)
    await _wait_for_crd(api, given.namespaces)
    me = leader_election.identity()
    # One lease, in the operator's own namespace: users can often write leases in theirs.
    leases = [leader_election.Lease(api, given.lease_namespace, me)]
    stack.push_async_callback(_release, leases)
    election = leader_election.keep_leases(leases, memo.reconciler.leadership.hold_until)
    stack.push_async_callback(_cancel, asyncio.create_task(election, name="leader-election"))
    memo.reconciler.start()
    stack.push_async_callback(memo.reconciler.stop)


async def _wait_for_crd(api: ApiClient, namespaces: tuple[str, ...]) -> None:
    """Wait until the API server serves YoloTrainingJobs: kopf looks for the resource only once."""
    while True:
        try:
            await api.versions(constants.KIND, namespaces)
        except ApiError as error:
            log.warning("waiting for the API server and the CustomResourceDefinition: %s", error)
            await asyncio.sleep(CRD_CHECK_INTERVAL_SECONDS)
        else:
            return


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _release(leases: list[leader_election.Lease]) -> None:
    for lease in leases:
        try:
            await lease.release()
        except ApiError:
            continue  # it expires


@kopf.on.cleanup()
async def cleanup(memo: Any, **_: Any) -> None:
    try:
        await memo.stack.aclose()
    finally:
        memo.cleaned.set()


# The API groups are given, because kopf would otherwise discover all of them, and wait for one that does not answer,
# such as that of an unavailable metrics server.
@kopf.index("", "v1", "pods", id="pods", labels=WORKER_PODS)
async def index_pod(namespace: Any, labels: Any, body: Any, **_: Any) -> dict[Key, PodFacts]:
    return {(namespace, labels[constants.LABEL_JOB]): pod_facts(body)}


def watch_nodes() -> None:
    """Watch the nodes as well: only an operator of the whole cluster may list them."""

    @kopf.index("", "v1", "nodes", id="nodes")
    async def index_node(name: Any, body: Any, **_: Any) -> dict[str, NodeFacts]:
        return {name: node_facts(body)}


@kopf.on.event("", "v1", "pods", labels=WORKER_PODS)
async def pod_event(*, namespace: Any, labels: Any, body: Any, memo: Any, **kwargs: Any) -> None:
    memo.indices.update(kwargs)
    if kwargs["type"] is None:  # from the list with which a watch starts
        memo.reconciler.watch_audit.watch_restarted()
    await memo.reconciler.pods_changed((namespace, labels[constants.LABEL_JOB]), body["metadata"]["uid"])


@kopf.on.event(constants.GROUP, constants.VERSION, constants.PLURAL)
async def job_event(*, body: Any, memo: Any, **kwargs: Any) -> None:
    memo.indices.update(kwargs)
    if kwargs["type"] is None:  # from the list with which a watch starts
        memo.reconciler.watch_audit.watch_restarted()
    if kwargs["type"] == "DELETED":
        memo.reconciler.job_gone((body["metadata"]["namespace"], body["metadata"]["name"]), body["metadata"]["uid"])
    else:
        memo.reconciler.job_seen(dict(body))
