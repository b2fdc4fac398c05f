"""Command line of the operator, `python -m yolojob_operator`: inside a cluster, or outside with KUBECONFIG."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
from typing import Annotated, Any

import kopf
import typer
from kubernetes.aio.config import ConfigException

from yolojob import __version__
from yolojob.api import uri as uris
from yolojob.api.constants import ExitCode
from yolojob.format import printable
from yolojob_operator.kopf_app import supervisor
from yolojob_operator.objects.defaults import Defaults
from yolojob_operator.objects.template_policy import Privilege

app = typer.Typer(pretty_exceptions_enable=False)
GC_THRESHOLDS = (10_000, 10, 10)
"""Objects of watch events live long and have no reference cycles: with Python's default (700, 10, 10) the garbage
collector takes a fifth of the CPU time."""


TrainerImage = Annotated[
    str, typer.Option(envvar="YOLOJOB_TRAINER_IMAGE", help="Image of the workers, unless the job sets one.")
]
ImagePullPolicy = Annotated[
    str | None, typer.Option(envvar="YOLOJOB_IMAGE_PULL_POLICY", help="Pull policy of the workers' image.")
]
ServiceAccount = Annotated[
    str | None, typer.Option(envvar="YOLOJOB_WORKER_SERVICE_ACCOUNT", help="Service account of the workers.")
]
CacheVolume = Annotated[
    str | None,
    typer.Option(
        envvar="YOLOJOB_CACHE_VOLUME", help="Volume source for staged datasets, as JSON; emptyDir unless set."
    ),
]
CoschedulingScheduler = Annotated[
    str,
    typer.Option(envvar="YOLOJOB_COSCHEDULING_SCHEDULER", help="Name of the scheduler with the coscheduling plugin."),
]
ReservedDiskShare = Annotated[
    float,
    typer.Option(
        envvar="YOLOJOB_RESERVED_DISK_SHARE", min=0, max=1, help="Share of a node's disk that staging leaves free."
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        envvar="YOLOJOB_WEIGHTS",
        help="URI of a folder with Ultralytics' official weights, for clusters without access to the Internet.",
    ),
]
Datasets = Annotated[
    str | None,
    typer.Option(
        envvar="YOLOJOB_DATASETS",
        help="URI of a folder with the archives of ultralytics://NAME, for clusters without access to the Internet.",
    ),
]
NetworkPolicies = Annotated[
    bool,
    typer.Option(envvar="YOLOJOB_NETWORK_POLICIES", help="Create a NetworkPolicy for each job."),
]
MetricsPeers = Annotated[
    str | None,
    typer.Option(
        envvar="YOLOJOB_METRICS_PEERS",
        help="Who may read the workers' metrics, as a JSON list of peers of a NetworkPolicy. Default: everybody.",
    ),
]
Allowed = Annotated[
    list[Privilege] | None,
    typer.Option(
        envvar="YOLOJOB_ALLOW",
        help="Privilege that spec.workers.template may request beyond an ordinary pod. Repeatable.",
    ),
]
Namespaces = Annotated[
    list[str] | None,
    typer.Option(envvar="YOLOJOB_NAMESPACES", help="Namespace to watch; all unless set. Repeatable."),
]
LeaseNamespace = Annotated[
    str | None,
    typer.Option(
        envvar="YOLOJOB_LEASE_NAMESPACE",
        help="Namespace of the lease that selects the leader: the same for all operators of the same jobs. A user who "
        "can write leases there can stop the operator. Default: the first watched namespace, or default.",
    ),
]
Listen = Annotated[
    str,
    typer.Option(envvar="YOLOJOB_LISTEN", help="HOST:PORT of /metrics and /healthz; no HTTP server unless set."),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Also log kopf's messages.")]


class _OneLineFormatter(logging.Formatter):
    """Shows line breaks and control characters of a message: a worker's message could otherwise forge log lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name of logging
        record.message = printable(record.message).replace("\n", "\\n")
        return super().formatMessage(record)


@app.command()
def main(
    trainer_image: TrainerImage = f"yolojob/trainer:{__version__}",
    image_pull_policy: ImagePullPolicy = None,
    service_account: ServiceAccount = None,
    cache_volume: CacheVolume = None,
    coscheduling_scheduler: CoschedulingScheduler = "scheduler-plugins-scheduler",
    reserved_disk_share: ReservedDiskShare = 0.15,
    weights: Weights = None,
    datasets: Datasets = None,
    network_policies: NetworkPolicies = True,
    metrics_peers: MetricsPeers = None,
    allow: Allowed = None,
    namespace: Namespaces = None,
    lease_namespace: LeaseNamespace = None,
    listen: Listen = "",
    verbose: Verbose = False,
) -> None:
    """Watch YoloTrainingJobs and run their pods."""
    from yolojob_operator.kopf_app import handlers

    handler = logging.StreamHandler()
    handler.setFormatter(_OneLineFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    logging.getLogger("kopf").setLevel(logging.INFO if verbose else logging.WARNING)
    if listen and not listen.rpartition(":")[2].isdigit():
        raise typer.BadParameter(f"--listen: {listen!r} must be HOST:PORT, such as 0.0.0.0:8080")
    gc.set_threshold(*GC_THRESHOLDS)
    memo = kopf.Memo()
    memo.settings = handlers.Settings(
        defaults=Defaults(
            image=trainer_image,
            image_pull_policy=image_pull_policy,
            service_account=service_account,
            cache_volume=_volume_source(cache_volume),
            reserved_disk_share=reserved_disk_share,
            weights=_remote_folder("--weights", weights),
            datasets=_remote_folder("--datasets", datasets),
            network_policies=network_policies,
            metrics_peers=_peers(metrics_peers),
            allowed=frozenset(allow or ()),
            coscheduling_scheduler=coscheduling_scheduler,
        ),
        namespaces=tuple(namespace or ()),
        lease_namespace=lease_namespace or (namespace or ["default"])[0],
        listen=listen,
    )
    if not namespace:
        handlers.watch_nodes()
    try:
        asyncio.run(supervisor.supervise(memo, namespace or []))
    except ConfigException as error:
        typer.echo(
            f"error: no cluster: {error}; set KUBECONFIG, or run in a pod with a service account",
            err=True,
        )
        raise typer.Exit(ExitCode.BAD_INPUT) from None


def _volume_source(text: str | None) -> dict[str, Any] | None:
    source = _parse_json("--cache-volume", text)
    if source is not None and (not isinstance(source, dict) or len(source) != 1):
        raise typer.BadParameter(f'--cache-volume: {text!r} must be one volume source, such as {{"emptyDir": {{}}}}')
    return source


def _remote_folder(option: str, text: str | None) -> str | None:
    if text:
        try:
            uris.parse(text, uris.REMOTE_SCHEMES)
        except ValueError as error:
            raise typer.BadParameter(f"{option}: {text!r} {error}") from None
    return text or None


def _peers(text: str | None) -> tuple[dict[str, Any], ...]:
    peers = _parse_json("--metrics-peers", text) or []
    if not isinstance(peers, list) or not all(isinstance(peer, dict) for peer in peers):
        raise typer.BadParameter(f'--metrics-peers: {text!r} must be a list, such as [{{"podSelector": {{}}}}]')
    return tuple(peers)


def _parse_json(option: str, text: str | None) -> Any:
    """The value of an option that is JSON; None if it is not set."""
    try:
        return json.loads(text) if text else None
    except ValueError as error:
        raise typer.BadParameter(f"{option}: {text!r} is not valid JSON: {error}") from None


if __name__ == "__main__":
    app()
