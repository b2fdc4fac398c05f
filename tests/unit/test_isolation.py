"""What keeps strangers away from a job's workers: the shared secret and the NetworkPolicy."""

from __future__ import annotations

import base64

import pytest
from support.plans import DEFAULTS, NOW, created, job, make_plan
from yolojob_operator.objects import isolation
from yolojob_operator.objects.defaults import Defaults
from yolojob_operator.plan.builder import Observed
from yolojob_operator.plan.lifecycle import plan


def test_workers_mount_the_secret_of_their_job() -> None:
    planned = make_plan(job())
    (secret,) = created(planned, "Secret")
    assert secret["metadata"]["ownerReferences"][0]["uid"] == "job-uid"
    assert "data" not in secret, "a plan is pure: the executor adds the random bytes"
    for pod in created(planned):
        volume = next(v for v in pod["spec"]["volumes"] if "secret" in v)
        assert volume["secret"]["secretName"] == secret["metadata"]["name"]
        (trainer,) = pod["spec"]["containers"]
        mount = next(m for m in trainer["volumeMounts"] if m["name"] == volume["name"])
        file = next(e["value"] for e in trainer["env"] if e["name"] == "YOLOJOB_SECRET_FILE")
        assert file == f"{mount['mountPath']}/{isolation.SECRET_KEY}"


def test_single_worker_needs_no_secret() -> None:
    planned = make_plan(job(workers={"replicas": 1}))
    assert created(planned, "Secret") == []
    (pod,) = created(planned)
    assert not [v for v in pod["spec"]["volumes"] if "secret" in v]


def test_jobs_of_the_same_name_have_different_secrets() -> None:
    first, second = job(), job()
    second.metadata.uid = "another-uid"
    assert isolation.secret_name(first) != isolation.secret_name(second)


def test_names_fit_the_longest_name_of_a_job() -> None:
    longest = job()
    longest.metadata.name = "j" * 52
    assert len(isolation.secret_name(longest)) <= 63


def test_network_policy_admits_workers_and_readers_of_metrics() -> None:
    peers = ({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}},)
    policy = isolation.network_policy(job(), Defaults(image="trainer:test", metrics_peers=peers))
    assert policy["spec"]["podSelector"] == {"matchLabels": {"yolojob.dev/job-name": "digits"}}
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    assert policy["spec"]["ingress"] == [
        {"from": [{"podSelector": {"matchLabels": {"yolojob.dev/job-name": "digits"}}}]},
        {"ports": [{"port": 9400, "endPort": 9400, "protocol": "TCP"}], "from": list(peers)},
    ]


def test_network_policy_covers_the_metrics_of_every_process() -> None:
    policy = isolation.network_policy(job(workers={"replicas": 2, "gpu": {"count": 8}}), DEFAULTS)
    (port,) = policy["spec"]["ingress"][1]["ports"]
    assert (port["port"], port["endPort"]) == (9400, 9407)


@pytest.mark.parametrize("enabled", [True, False])
def test_installation_decides_on_network_policies(enabled: bool) -> None:
    defaults = Defaults(image=DEFAULTS.image, network_policies=enabled)
    assert len(created(plan(job(), Observed(), NOW, defaults), "NetworkPolicy")) == enabled


def test_secret_data_is_random_and_long() -> None:
    values = {isolation.random_data()[isolation.SECRET_KEY] for _ in range(10)}
    assert len(values) == 10
    assert all(len(base64.b64decode(value)) == 32 for value in values)
