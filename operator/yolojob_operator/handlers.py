"""kopf's side of the operator: what it watches, and whom it tells. No finalizers, no webhooks, no decisions."""

from __future__ import annotations

from typing import Any

import kopf

from yolojob import contract
from yolojob_operator.cluster import Cluster
from yolojob_operator.facts import PodFacts, pod_facts
from yolojob_operator.pods import Defaults, Object
from yolojob_operator.reconciler import Key, Reconciler

WORKER_PODS: dict[str, Any] = {contract.LABEL_JOB: kopf.PRESENT}


class PodIndex:
    """Reads the index that kopf hands to every handler. Handlers run only once it holds all pods.

    A holder, because kopf gives each object its own shallow copy of the memo.
    """

    index: Any = None

    def __call__(self, key: Key) -> list[PodFacts]:
        return list(self.index.get(key, ())) if self.index is not None else []


@kopf.on.startup()
async def startup(settings: kopf.OperatorSettings, memo: Any, **_: Any) -> None:
    settings.peering.standalone = True
    settings.scanning.disabled = True
    settings.posting.reporting_component = "yolojob-operator"
    settings.persistence.finalizer = f"{contract.GROUP}/never-used"
    memo.pods = PodIndex()
    memo.cluster = await Cluster.connect()
    memo.reconciler = Reconciler(memo.cluster, Defaults(**memo.defaults), memo.pods)
    memo.reconciler.start()


@kopf.on.cleanup()
async def cleanup(memo: Any, **_: Any) -> None:
    await memo.reconciler.stop()
    await memo.cluster.close()


@kopf.index("pods", id="pods", labels=WORKER_PODS)
async def index_pod(namespace: Any, labels: Any, body: Any, **_: Any) -> dict[Key, PodFacts]:
    return {(namespace, labels[contract.LABEL_JOB]): pod_facts(body)}


@kopf.on.event("pods", labels=WORKER_PODS)
async def pod_event(*, namespace: Any, labels: Any, memo: Any, **kwargs: Any) -> None:
    memo.pods.index = kwargs["pods"]
    memo.reconciler.wake((namespace, labels[contract.LABEL_JOB]))


@kopf.on.event(contract.GROUP, contract.VERSION, contract.PLURAL)
async def job_event(*, type: Any, body: Any, memo: Any, **kwargs: Any) -> None:
    memo.pods.index = kwargs["pods"]
    if type == "DELETED":
        memo.reconciler.job_gone((body["metadata"]["namespace"], body["metadata"]["name"]))
    else:
        memo.reconciler.job_seen(_plain(body))


def _plain(body: Any) -> Object:
    raw = dict(body)
    metadata = dict(raw["metadata"])
    metadata.pop("managedFields", None)
    return {**raw, "metadata": metadata}
