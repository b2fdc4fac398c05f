"""Settings of the operator's installation that apply to the pods of all jobs."""

from __future__ import annotations

from dataclasses import dataclass

from yolojob_operator.kube.types import Object
from yolojob_operator.objects.template_policy import Privilege


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What the installation decides for all jobs."""

    image: str
    """Trainer image."""
    image_pull_policy: str | None = None
    service_account: str | None = None
    """Service account of workers; the namespace's default unless set. Its token is never mounted."""
    cache_volume: Object | None = None
    """Source of the volume for staged datasets; emptyDir unless set. With a volume of the node (hostPath) all pods on a
    node, also of later jobs, share what one of them has downloaded."""
    allowed: frozenset[Privilege] = frozenset()
    """What templates may request beyond an ordinary pod."""
    reserved_disk_share: float = 0.15
    """Share of a node's disk that staging leaves free. A kubelet evicts pods, also those of others, when less than 10 %
    of its own file system or 15 % of that of the images is free
    (kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction)."""
    weights: str | None = None
    """URI of the folder with official weights; where Ultralytics publishes them unless set."""
    datasets: str | None = None
    """URI of the folder with the archives of ultralytics://NAME; where Ultralytics publishes them unless set."""
    network_policies: bool = True
    """Whether each job gets a NetworkPolicy."""
    metrics_peers: tuple[Object, ...] = ()
    """Who may read the workers' metrics besides the job itself: peers of a NetworkPolicy. Empty: everybody."""
    coscheduling_scheduler: str = "scheduler-plugins-scheduler"
    """Name of the scheduler that has the coscheduling plugin; the default is the name in the plugin's Helm chart."""
