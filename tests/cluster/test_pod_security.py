"""The template policy, judged by the API server: a pod of an accepted template satisfies the level "restricted"."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pod_schema
import pytest
from support.kube import Kube
from support.plans import job
from support.release import ENFORCE
from yolojob_operator.objects import pods
from yolojob_operator.objects.defaults import Defaults
from yolojob_operator.objects.template_policy import DECIDED, disallowed_fields

HOSTILE: tuple[Any, ...] = (
    *(True, False, None, 0, 1, -1, 10**12),
    *("", "x", "Always", "Unconfined", "Localhost", "Unmasked", "Bidirectional", "/"),
    *([], {}, [{}], ["x"], {"x": "y"}),
    *({"type": "Unconfined"}, {"type": "Localhost", "localhostProfile": "x"}, {"type": "RuntimeDefault"}),
    *({"add": ["SYS_ADMIN"]}, {"drop": []}, {"drop": ["NET_RAW"]}, {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}),
    *([{"name": "net.ipv4.ip_forward", "value": "1"}], {"level": "s0", "type": "spc_t"}),
    *(
        {"hostProcess": True},
        {"httpGet": {"host": "169.254.169.254", "port": 80}},
        {"tcpSocket": {"host": "x", "port": 1}},
    ),
    *([{"hostPort": 80, "containerPort": 80}], [{"name": "v", "mountPath": "/x", "mountPropagation": "Bidirectional"}]),
    *([{"name": "v", "hostPath": {"path": "/"}}], [{"name": "v", "nfs": {"server": "x", "path": "/"}}]),
)
"""Values that some field of a pod must not have."""
JUDGED = 400
"""Pods that the API server judges; it takes 70 ms for each."""
CONTAINERS = ("containers", "initContainers", "ephemeralContainers")


def templates() -> Iterator[dict[str, Any]]:
    """Yields every decided field of a pod, of its containers and of its security contexts, with every hostile value."""
    for field, value in itertools.product(DECIDED["PodSpec"], HOSTILE):
        yield {field: value}
    for field, value in itertools.product(DECIDED["PodSecurityContext"], HOSTILE):
        yield {"securityContext": {field: value}}
    for kind, name in itertools.product(CONTAINERS, ("trainer", "side")):
        for field, value in itertools.product(DECIDED["Container"], HOSTILE):
            yield {kind: [{"name": name, "image": "x", field: value}]}
        for field, value in itertools.product(DECIDED["SecurityContext"], HOSTILE):
            yield {kind: [{"name": name, "image": "x", "securityContext": {field: value}}]}


def rendered(template: dict[str, Any], name: str, namespace: str) -> dict[str, Any] | None:
    """Returns the pod of an accepted template; None if the template is refused or malformed."""
    if list(disallowed_fields({"spec": template})):
        return None
    try:
        pod = pods.worker(job(workers={"template": {"spec": template}}), 0, 1, Defaults(image="x"))
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    del pod["metadata"]["ownerReferences"]
    return {**pod, "metadata": {**pod["metadata"], "name": name, "namespace": namespace}}


@pytest.fixture(scope="module")
def restricted(api: Kube, kube: Kube) -> Iterator[Kube]:
    name = f"{kube.namespace}-restricted"
    api.run("create", "namespace", name)
    api.run("label", "namespace", name, f"{ENFORCE}=restricted")
    yield Kube(api.kubeconfig, name)
    api.run("delete", "namespace", name, "--wait=false")


def test_pods_of_accepted_hostile_templates_are_restricted(restricted: Kube) -> None:
    """By upstream's own evaluator, in the API server."""
    hostile = list(templates())
    assert len(hostile) > 400
    drawn = [rendered(template, f"pod-{i}", restricted.namespace) for i, template in enumerate(hostile)]
    accepted = [pod for pod in drawn if pod is not None]
    assert JUDGED < len(accepted) < len(hostile)
    judged = random.Random(0).sample(accepted, JUDGED)
    items = json.dumps({"apiVersion": "v1", "kind": "List", "items": judged})
    options = ("--dry-run=server", "--validate=ignore", "--filename", "-")
    done = restricted.run("create", *options, input=items, check=False)
    violations = [line for line in done.stderr.splitlines() if "violates PodSecurity" in line]
    assert not violations, "\n".join(violations[:20])
    assert done.stdout.count("created (server dry run)") > 50, done.stderr[-2000:]


def test_privileged_pod_violates_the_level(restricted: Kube) -> None:
    """The evaluator is at work in this namespace."""
    pod = rendered({}, "pod", restricted.namespace)
    assert pod is not None
    pod["spec"]["hostNetwork"] = True
    done = restricted.run("create", "--dry-run=server", "--filename", "-", input=json.dumps(pod), check=False)
    assert "violates PodSecurity" in done.stderr


@pytest.mark.parametrize("kind", sorted(DECIDED))
def test_policy_has_decided_on_every_field_of_this_kubernetes(api: Kube, kind: str) -> None:
    document = json.loads(api.run("get", "--raw", "/openapi/v3/api/v1").stdout)
    fields = set(document["components"]["schemas"][f"io.k8s.api.core.v1.{kind}"]["properties"])
    assert fields - set(DECIDED[kind]) == set(), "fields that the template policy has not decided on"


def test_template_has_the_fields_of_a_pod_in_this_kubernetes(api: Kube) -> None:
    """If it fails after an upgrade of the test cluster: run tools/pod_schema.py, and decide on the new fields."""
    openapi = json.loads(api.run("get", "--raw", "/openapi/v3/api/v1").stdout)
    assert pod_schema.render(openapi) == Path(pod_schema.__file__).parents[1].joinpath(pod_schema.FILE).read_text()
