"""The template policy: which fields of a pod template need a privilege."""

from __future__ import annotations

from typing import Any

import pytest
from support.plans import NOW, conditions, job
from yolojob_operator.objects.defaults import Defaults
from yolojob_operator.objects.template_policy import MAX_TEMPLATE_BYTES, Privilege, disallowed_fields
from yolojob_operator.plan.builder import Observed
from yolojob_operator.plan.lifecycle import plan

TOKEN = {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}
FORBIDDEN: list[tuple[dict[str, Any], Privilege, str]] = [
    ({"hostNetwork": True}, Privilege.HOST_NAMESPACES, "spec.hostNetwork"),
    ({"hostPID": True}, Privilege.HOST_NAMESPACES, "spec.hostPID"),
    ({"hostIPC": True}, Privilege.HOST_NAMESPACES, "spec.hostIPC"),
    ({"nodeName": "node-0"}, Privilege.NODE_NAME, "spec.nodeName"),
    ({"serviceAccountName": "admin"}, Privilege.SERVICE_ACCOUNT, "spec.serviceAccountName"),
    ({"serviceAccount": "admin"}, Privilege.SERVICE_ACCOUNT, "spec.serviceAccount"),
    ({"automountServiceAccountToken": True}, Privilege.SERVICE_ACCOUNT, "spec.automountServiceAccountToken"),
    (
        {"volumes": [{"name": "a"}, {"name": "h", "hostPath": {"path": "/"}}]},
        Privilege.HOST_PATH,
        "spec.volumes[1].hostPath",
    ),
    ({"volumes": [TOKEN]}, Privilege.SERVICE_ACCOUNT, "spec.volumes[0].projected.sources[0].serviceAccountToken"),
    ({"automountServiceAccountToken": None}, Privilege.SERVICE_ACCOUNT, "spec.automountServiceAccountToken"),
    ({"securityContext": None}, Privilege.PRIVILEGED, "spec.securityContext"),
    ({"securityContext": {"runAsNonRoot": None}}, Privilege.PRIVILEGED, "spec.securityContext.runAsNonRoot"),
    ({"securityContext": {"runAsUser": 0}}, Privilege.PRIVILEGED, "spec.securityContext.runAsUser"),
    ({"securityContext": {"runAsNonRoot": False}}, Privilege.PRIVILEGED, "spec.securityContext.runAsNonRoot"),
    ({"securityContext": {"sysctls": [{"name": "a"}]}}, Privilege.PRIVILEGED, "spec.securityContext.sysctls"),
    (
        {"securityContext": {"seccompProfile": {"type": "Unconfined"}}},
        Privilege.PRIVILEGED,
        "spec.securityContext.seccompProfile",
    ),
]
CONTAINERS: list[tuple[dict[str, Any], Privilege, str]] = [
    ({"securityContext": {"privileged": True}}, Privilege.PRIVILEGED, "securityContext.privileged"),
    (
        {"securityContext": {"allowPrivilegeEscalation": True}},
        Privilege.PRIVILEGED,
        "securityContext.allowPrivilegeEscalation",
    ),
    (
        {"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}},
        Privilege.PRIVILEGED,
        "securityContext.capabilities",
    ),
    ({"securityContext": {"procMount": "Unmasked"}}, Privilege.PRIVILEGED, "securityContext.procMount"),
    ({"ports": [{"containerPort": 1, "hostPort": 1}]}, Privilege.HOST_NAMESPACES, "ports[0].hostPort"),
]
FORBIDDEN += [
    ({kind: [{"name": "trainer", **part}]}, privilege, f"spec.{kind}[0].{path}")
    for kind in ("containers", "initContainers")
    for part, privilege, path in CONTAINERS
]
FORBIDDEN += [
    ({"containers": [{"name": "side", **part}]}, privilege, f"spec.containers[0].{path}")
    for part, privilege, path in (
        (
            {"livenessProbe": {"httpGet": {"host": "169.254.169.254"}}},
            Privilege.HOST_NAMESPACES,
            "livenessProbe.httpGet.host",
        ),
        (
            {"startupProbe": {"tcpSocket": {"host": "10.0.0.1"}}},
            Privilege.HOST_NAMESPACES,
            "startupProbe.tcpSocket.host",
        ),
        (
            {"lifecycle": {"postStart": {"httpGet": {"host": "x"}}}},
            Privilege.HOST_NAMESPACES,
            "lifecycle.postStart.httpGet.host",
        ),
        ({"securityContext": {"capabilities": {"drop": []}}}, Privilege.PRIVILEGED, "securityContext.capabilities"),
        ({"securityContext": {"runAsGroup": 0}}, Privilege.PRIVILEGED, "securityContext.runAsGroup"),
        ({"securityContext": {"runAsUser": 0.0}}, Privilege.PRIVILEGED, "securityContext.runAsUser"),
        ({"restartPolicy": "Always"}, Privilege.OTHER_FIELDS, "restartPolicy"),
        ({"restartPolicyRules": [{}]}, Privilege.OTHER_FIELDS, "restartPolicyRules"),
        ({"volumeDevices": [{"name": "a"}]}, Privilege.OTHER_VOLUMES, "volumeDevices"),
        (
            {"volumeMounts": [{"name": "a", "mountPropagation": "Bidirectional"}]},
            Privilege.PRIVILEGED,
            "volumeMounts[0].mountPropagation",
        ),
        (
            {"resources": {"limits": {"nvidia.com/gpu": 8}}},
            Privilege.EXTENDED_RESOURCES,
            "resources.limits[nvidia.com/gpu]",
        ),
        ({"aFieldOfTomorrow": False}, Privilege.OTHER_FIELDS, "aFieldOfTomorrow"),
        ({"$patch": "delete"}, Privilege.OTHER_FIELDS, "$patch"),
    )
]
FORBIDDEN += [
    ({name: value}, privilege, f"spec.{name}")
    for name, value, privilege in (
        ("hostSomething", True, Privilege.OTHER_FIELDS),
        ("activeDeadlineSeconds", 5, Privilege.OTHER_FIELDS),
        ("terminationGracePeriodSeconds", 315_360_000, Privilege.OTHER_FIELDS),
        ("terminationGracePeriodSeconds", "600", Privilege.OTHER_FIELDS),
        ("priorityClassName", "system-node-critical", Privilege.SCHEDULING),
        ("schedulerName", "mine", Privilege.SCHEDULING),
        ("runtimeClassName", "kata", Privilege.SCHEDULING),
        ("schedulingGates", [{"name": "a"}], Privilege.SCHEDULING),
        ("resourceClaims", [{"name": "a"}], Privilege.EXTENDED_RESOURCES),
        ("hostUsers", True, Privilege.PRIVILEGED),
    )
]
FORBIDDEN += [
    ({"volumes": [{"name": "v", kind: content}]}, privilege, f"spec.volumes[0].{kind}{below}")
    for kind, content, privilege, below in (
        ("nfs", {"server": "x"}, Privilege.OTHER_VOLUMES, ""),
        ("csi", {"driver": "x"}, Privilege.OTHER_VOLUMES, ""),
        ("ephemeral", {}, Privilege.OTHER_VOLUMES, ""),
        ("image", {"reference": "x"}, Privilege.OTHER_VOLUMES, ""),
        ("volumeOfTomorrow", {}, Privilege.OTHER_VOLUMES, ""),
        ("emptyDir", {"medium": "Memory"}, Privilege.OTHER_VOLUMES, ".medium"),
        (
            "projected",
            {"sources": [{"podCertificate": {"keyType": "RSA3072"}}]},
            Privilege.SERVICE_ACCOUNT,
            ".projected.sources[0].podCertificate".removeprefix(".projected"),
        ),
    )
]
FORBIDDEN += [
    ({"tolerations": [toleration]}, Privilege.SCHEDULING, "spec.tolerations[0]")
    for toleration in ({"operator": "Exists"}, {"key": "node-role.kubernetes.io/control-plane"})
]


def accepted(template: dict[str, Any], **defaults: Any) -> tuple[str, str]:
    """Status and reason of the condition Accepted."""
    planned = plan(job(workers={"template": {"spec": template}}), Observed(), NOW, Defaults(image="x", **defaults))
    assert bool(planned.create) == (conditions(planned)["Accepted"][0] == "True")
    return conditions(planned)["Accepted"]


@pytest.mark.parametrize(
    ("template", "privilege", "path"), FORBIDDEN, ids=[f"{i}-{path}" for i, (_, _, path) in enumerate(FORBIDDEN)]
)
def test_field_beyond_an_ordinary_pod_needs_its_privilege(
    template: dict[str, Any], privilege: Privilege, path: str
) -> None:
    assert [(p, where) for p, where, _ in disallowed_fields({"spec": template})] == [(privilege, path)]
    assert accepted(template) == ("False", "TemplateForbidden")
    others = frozenset(Privilege) - {privilege}
    assert accepted(template, allowed=others) == ("False", "TemplateForbidden"), "no other privilege allows it"
    assert accepted(template, allowed=frozenset({privilege})) == ("True", "Accepted")


def test_common_fields_need_no_privilege() -> None:
    template = {
        "nodeSelector": {"pool": "gpu"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "affinity": {"podAntiAffinity": {}},
        "imagePullSecrets": [{"name": "registry"}],
        "securityContext": {"runAsUser": 2000, "runAsNonRoot": True, "fsGroup": 2000},
        "automountServiceAccountToken": False,
        "volumes": [
            {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
            {"name": "s", "secret": {"secretName": "s3"}},
        ],
        "containers": [
            {
                "name": "trainer",
                "env": [{"name": "AWS_ACCESS_KEY_ID", "valueFrom": {"secretKeyRef": {"name": "s3", "key": "id"}}}],
                "securityContext": {"capabilities": {"drop": ["ALL"]}, "privileged": False},
                "ports": [{"containerPort": 8000}],
            }
        ],
    }
    assert accepted(template) == ("True", "Accepted")


def test_null_that_removes_nothing_needs_no_privilege() -> None:
    """Go clients write it for fields that are not set."""
    container = {"name": "side", "livenessProbe": None, "volumeMounts": [{"name": "a", "mountPropagation": None}]}
    template = {
        "metadata": {"creationTimestamp": None},
        "spec": {
            "hostSomething": None,
            "hostUsers": None,
            "terminationGracePeriodSeconds": None,
            "initContainers": [{"name": "first", "restartPolicy": None}],
            "containers": [container],
        },
    }
    assert list(disallowed_fields(template)) == []


@pytest.mark.parametrize("drop", [None, 5, "ALL", {}])
def test_capabilities_of_any_type_are_judged(drop: Any) -> None:
    spec = {"securityContext": {"capabilities": {"drop": drop}}}
    found = [privilege for privilege, _, _ in disallowed_fields({"spec": spec})]
    assert found == [Privilege.PRIVILEGED]


@pytest.mark.parametrize(
    ("spec", "privilege"),
    [
        ({"scheduling": {"priorityClassName": "system-node-critical"}}, Privilege.SCHEDULING),
        ({"workers": {"resources": {"limits": {"smarter-devices/kvm": "1"}}}}, Privilege.EXTENDED_RESOURCES),
    ],
)
def test_fields_beside_the_template_need_the_same_privileges(spec: dict[str, Any], privilege: Privilege) -> None:
    refused = plan(job(**spec), Observed(), NOW, Defaults(image="x"))
    assert conditions(refused)["Accepted"] == ("False", "TemplateForbidden")
    allowed = plan(job(**spec), Observed(), NOW, Defaults(image="x", allowed=frozenset({privilege})))
    assert conditions(allowed)["Accepted"] == ("True", "Accepted")


def test_service_account_of_the_installation_needs_no_privilege() -> None:
    assert accepted({"serviceAccountName": "workers"}, service_account="workers") == ("True", "Accepted")
    assert accepted({"serviceAccountName": "admin"}, service_account="workers") == ("False", "TemplateForbidden")


@pytest.mark.parametrize(
    "malformed", [[], "x", 5, {"containers": "x"}, {"containers": [1]}, {"securityContext": []}, {"volumes": {}}]
)
def test_malformed_template_has_no_disallowed_fields(malformed: Any) -> None:
    assert list(disallowed_fields({"spec": malformed})) == []


@pytest.mark.parametrize(
    ("name", "privilege"),
    [
        ("team", None),
        ("example.com/team", None),
        ("app.kubernetes.io/part-of", None),
        ("sidecar.istio.io/inject", None),
        ("cluster-autoscaler.kubernetes.io/safe-to-evict", None),
        ("kueue.x-k8s.io/pod-group-name", Privilege.RESERVED_METADATA),
        ("yolojob.dev/spare", Privilege.RESERVED_METADATA),
        ("iam.amazonaws.com/role", Privilege.RESERVED_METADATA),
        ("azure.workload.identity/use", Privilege.RESERVED_METADATA),
        ("k8s.v1.cni.cncf.io/networks", Privilege.RESERVED_METADATA),
        ("io.kubernetes.cri-o.Devices", Privilege.RESERVED_METADATA),
        ("devices.nri.io/container.trainer", Privilege.RESERVED_METADATA),
        ("networking.gke.io/interfaces", Privilege.RESERVED_METADATA),
        ("v1.multus-cni.io/default-network", Privilege.RESERVED_METADATA),
        ("vault.hashicorp.com/agent-inject", Privilege.RESERVED_METADATA),
    ],
)
@pytest.mark.parametrize("kind", ["labels", "annotations"])
def test_metadata_of_other_controllers_needs_a_privilege(name: str, privilege: Privilege | None, kind: str) -> None:
    found = [(p, where) for p, where, _ in disallowed_fields({"metadata": {kind: {name: "x"}}})]
    assert found == ([] if privilege is None else [(privilege, f"metadata.{kind}[{name}]")])


def test_template_larger_than_the_limit_is_refused() -> None:
    template = {"containers": [{"name": "trainer", "env": [{"name": "A", "value": "x" * MAX_TEMPLATE_BYTES}]}]}
    assert accepted(template) == ("False", "TemplateForbidden")


@pytest.mark.parametrize(
    ("profile", "disallowed"), [("unconfined", True), ("", True), ("runtime/default", False), ("localhost/mine", False)]
)
def test_apparmor_annotation_needs_a_privilege_if_unconfined(profile: str, disallowed: bool) -> None:
    name = "container.apparmor.security.beta.kubernetes.io/trainer"
    template = {"metadata": {"annotations": {name: profile, "team": "vision"}}, "spec": {}}
    disallowed_paths = [(p, where) for p, where, _ in disallowed_fields(template)]
    assert disallowed_paths == ([(Privilege.PRIVILEGED, f"metadata.annotations[{name}]")] if disallowed else [])
