"""The template policy: which fields of a pod template need a privilege."""

from __future__ import annotations

from typing import Any

import pytest
from support.plans import NOW, conditions, job
from yolojob_operator.objects.defaults import Defaults
from yolojob_operator.objects.template_policy import Privilege, disallowed_fields
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
    ({"volumes": [TOKEN]}, Privilege.SERVICE_ACCOUNT, "spec.volumes[0].projected"),
    ({"automountServiceAccountToken": None}, Privilege.SERVICE_ACCOUNT, "spec.automountServiceAccountToken"),
    ({"securityContext": None}, Privilege.PRIVILEGED, "spec.securityContext"),
    ({"securityContext": {"runAsNonRoot": None}}, Privilege.PRIVILEGED, "spec.securityContext.runAsNonRoot"),
    ({"securityContext": {"runAsUser": 0}}, Privilege.PRIVILEGED, "spec.securityContext.runAsUser"),
    ({"securityContext": {"runAsNonRoot": False}}, Privilege.PRIVILEGED, "spec.securityContext.runAsNonRoot"),
    ({"securityContext": {"sysctls": [{"name": "a"}]}}, Privilege.PRIVILEGED, "spec.securityContext.sysctls"),
    (
        {"securityContext": {"seccompProfile": {"type": "Unconfined"}}},
        Privilege.PRIVILEGED,
        "spec.securityContext.seccompProfile.type",
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
        "securityContext.capabilities.add",
    ),
    ({"securityContext": {"procMount": "Unmasked"}}, Privilege.PRIVILEGED, "securityContext.procMount"),
    ({"ports": [{"containerPort": 1, "hostPort": 1}]}, Privilege.HOST_NAMESPACES, "ports[0].hostPort"),
]
FORBIDDEN += [
    ({kind: [{"name": "trainer", **part}]}, privilege, f"spec.{kind}[0].{path}")
    for kind in ("containers", "initContainers")
    for part, privilege, path in CONTAINERS
]


def accepted(template: dict[str, Any], **defaults: Any) -> tuple[str, str]:
    """Status and reason of the condition Accepted."""
    planned = plan(job(workers={"template": {"spec": template}}), Observed(), NOW, Defaults(image="x", **defaults))
    assert bool(planned.create) == (conditions(planned)["Accepted"][0] == "True")
    return conditions(planned)["Accepted"]


@pytest.mark.parametrize(("template", "privilege", "path"), FORBIDDEN, ids=[path for _, _, path in FORBIDDEN])
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
        "tolerations": [{"operator": "Exists"}],
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


def test_service_account_of_the_installation_needs_no_privilege() -> None:
    assert accepted({"serviceAccountName": "workers"}, service_account="workers") == ("True", "Accepted")
    assert accepted({"serviceAccountName": "admin"}, service_account="workers") == ("False", "TemplateForbidden")


@pytest.mark.parametrize(
    "malformed", [[], "x", 5, {"containers": "x"}, {"containers": [1]}, {"securityContext": []}, {"volumes": {}}]
)
def test_malformed_template_has_no_disallowed_fields(malformed: Any) -> None:
    assert list(disallowed_fields({"spec": malformed})) == []


@pytest.mark.parametrize(
    ("profile", "disallowed"), [("unconfined", True), ("", True), ("runtime/default", False), ("localhost/mine", False)]
)
def test_apparmor_annotation_needs_a_privilege_if_unconfined(profile: str, disallowed: bool) -> None:
    name = "container.apparmor.security.beta.kubernetes.io/trainer"
    template = {"metadata": {"annotations": {name: profile, "team": "vision"}}, "spec": {}}
    disallowed_paths = [(p, where) for p, where, _ in disallowed_fields(template)]
    assert disallowed_paths == ([(Privilege.PRIVILEGED, f"metadata.annotations[{name}]")] if disallowed else [])
