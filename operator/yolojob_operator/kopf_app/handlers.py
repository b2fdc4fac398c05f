"""kopf's side of the operator: what it watches, and whom it tells. No finalizers, no webhooks, no decisions."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import kopf

from yolojob.api import constants
from yolojob_operator.control import leader_election
from yolojob_operator.control.metrics import Metrics
from yolojob_operator.control.reconciler import Reconciler
from yolojob_operator.kopf_app import http_server
from yolojob_operator.kopf_app.indices import Indices
from yolojob_operator.kopf_app.null_storage import NoDiffBase, NoProgress
from yolojob_operator.kube.api_client import ApiClient, ApiError
from yolojob_operator.kube.types import Key
from yolojob_operator.objects.defaults import Defaults
from yolojob_operator.plan.node_facts import NodeFacts, node_facts
from yolojob_operator.plan.pod_facts import PodFacts, pod_facts

log = logging.getLogger(__name__)

SERVED_SECONDS = 2.0
"""Between two looks for our kind of object."""
WORKER_PODS: dict[str, Any] = {constants.LABEL_JOB: kopf.PRESENT}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How this operator was installed."""

    defaults: Defaults
    namespaces: tuple[str, ...]
    """Watched; all, where there are none."""
    lease_namespace: str
    """Home of the lease of an operator that watches all namespaces."""
    listen: str
    """Address of /metrics and /healthz; empty serves nothing."""


class Endless:
    """Seconds between tries of kopf's own requests: it gives up its watches, and with them itself, when they run out."""

    def __iter__(self) -> Iterator[float]:
        return itertools.chain((1, 1, 2, 3, 5, 8, 13, 21), itertools.repeat(30))


@kopf.on.startup()
async def startup(settings: kopf.OperatorSettings, memo: Any, **_: Any) -> None:
    # An object that has just been seen is kept in memory for so long, for more news of it: 5 s cost 100 MB at a thousand jobs.
    settings.queueing.idle_timeout = 0.5
    settings.networking.error_backoffs = Endless()
    # The filter of a handler is kopf's own: without this it is sent every pod of the cluster.
    settings.watching.label_selectors["pods"] = constants.LABEL_JOB
    settings.peering.standalone = True
    settings.scanning.disabled = True
    settings.posting.reporting_component = "yolojob-operator"
    settings.persistence.finalizer = f"{constants.GROUP}/never-used"
    settings.persistence.diffbase_storage = NoDiffBase()
    settings.persistence.progress_storage = NoProgress()
    given: Settings = memo.settings
    memo.stack = stack = AsyncExitStack()
    memo.indices = Indices(clusterwide=not given.namespaces)
    metrics = Metrics(lambda: memo.reconciler.statuses())

    def observe(method: str, resource: str, status: int, seconds: float) -> None:
        metrics.requests.labels(method, resource, status).inc()
        metrics.request_seconds.labels(method).observe(seconds)

    cluster = await ApiClient.connect(observe)
    stack.push_async_callback(cluster.close)
    indices = memo.indices
    memo.reconciler = Reconciler(
        cluster, given.defaults, metrics, given.namespaces, indices.pods, indices.all_pods, indices.nodes
    )
    metrics.watch_lag_seconds.set_function(memo.reconciler.watch_lag)
    if given.listen:
        runner = await http_server.serve(given.listen, metrics.registry, memo.reconciler.unhealthy_reason)
        stack.push_async_callback(runner.cleanup)
    await _until_served(cluster, given.namespaces)
    me = leader_election.identity()
    leases = [leader_election.Lease(cluster, name, me) for name in given.namespaces or (given.lease_namespace,)]
    stack.push_async_callback(_release, leases)
    keeper = asyncio.create_task(leader_election.keep(leases, memo.reconciler.leadership.hold_until), name="lease")
    stack.push_async_callback(_end, keeper)
    memo.reconciler.start()
    stack.push_async_callback(memo.reconciler.stop)


async def _until_served(cluster: ApiClient, namespaces: tuple[str, ...]) -> None:
    """Wait until the API server knows our jobs: kopf looks for their kind once, and never again."""
    while True:
        try:
            await cluster.versions(constants.KIND, namespaces)
        except ApiError as error:
            log.warning("waiting for the API server, and for the CustomResourceDefinition: %s", error)
            await asyncio.sleep(SERVED_SECONDS)
        else:
            return


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _release(leases: list[leader_election.Lease]) -> None:
    for each in leases:
        try:
            await each.release()
        except ApiError:
            continue  # it runs out by itself


@kopf.on.cleanup()
async def cleanup(memo: Any, **_: Any) -> None:
    try:
        await memo.stack.aclose()
    finally:
        memo.cleaned.set()


# Groups are named, or kopf would look into all of them: it waits for one that does not answer, such as that of a metrics
# server which is away.
@kopf.index("", "v1", "pods", id="pods", labels=WORKER_PODS)
async def index_pod(namespace: Any, labels: Any, body: Any, **_: Any) -> dict[Key, PodFacts]:
    return {(namespace, labels[constants.LABEL_JOB]): pod_facts(body)}


def watch_nodes() -> None:
    """Watch the nodes, too: only an operator of the whole cluster may see them."""

    @kopf.index("", "v1", "nodes", id="nodes")
    async def index_node(name: Any, body: Any, **_: Any) -> dict[str, NodeFacts]:
        return {name: node_facts(body)}


@kopf.on.event("", "v1", "pods", labels=WORKER_PODS)
async def pod_event(*, type: Any, namespace: Any, labels: Any, body: Any, memo: Any, **kwargs: Any) -> None:
    memo.indices.update(kwargs)
    if type is None:
        memo.reconciler.watch_audit.watch_restarted()
    await memo.reconciler.pods_changed((namespace, labels[constants.LABEL_JOB]), body["metadata"]["uid"])


@kopf.on.event(constants.GROUP, constants.VERSION, constants.PLURAL)
async def job_event(*, type: Any, body: Any, memo: Any, **kwargs: Any) -> None:
    memo.indices.update(kwargs)
    if type is None:
        memo.reconciler.watch_audit.watch_restarted()
    if type == "DELETED":
        memo.reconciler.job_gone((body["metadata"]["namespace"], body["metadata"]["name"]), body["metadata"]["uid"])
    else:
        memo.reconciler.job_seen(dict(body))
