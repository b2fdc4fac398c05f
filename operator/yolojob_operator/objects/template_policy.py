"""Finds fields of `spec.workers.template` that request more than an ordinary pod may have. Pure.

The operator creates pods with its own rights. Without this check, a user who may create jobs but not such pods could
have the operator create them. The operator refuses whatever the Pod Security level "baseline" forbids, other service
accounts, and node names that bypass the scheduler, unless the installation allows them by name
(https://kubernetes.io/docs/concepts/security/pod-security-standards/).
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Any

from yolojob_operator.kube.types import Object

APPARMOR = "container.apparmor.security.beta.kubernetes.io/"
"""Prefix of the annotations that set AppArmor profiles before the pod had a field for them
(kubernetes.io/docs/tutorials/security/apparmor). API servers and kubelets still apply them."""


class Privilege(enum.StrEnum):
    """A privilege that an installation can allow."""

    HOST_NAMESPACES = "hostNamespaces"
    """hostNetwork, hostPID, hostIPC, host ports."""
    HOST_PATH = "hostPath"
    """Volumes with files of the node."""
    PRIVILEGED = "privileged"
    """Privileged containers, additional capabilities, root, no seccomp profile, sysctls."""
    SERVICE_ACCOUNT = "serviceAccount"
    """A service account other than the installation's, or a service account token."""
    NODE_NAME = "nodeName"
    """A fixed node, which bypasses the scheduler and every queue."""


def disallowed_fields(template: Object) -> Iterator[tuple[Privilege, str, object]]:
    """(privilege, path below spec.workers.template, value) of each field that requests more than an ordinary pod may
    have.
    """
    yield from _in_annotations(template.get("metadata"))
    spec = template.get("spec")
    if not isinstance(spec, dict):
        return
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(name):
            yield Privilege.HOST_NAMESPACES, f"spec.{name}", spec[name]
    if spec.get("nodeName"):
        yield Privilege.NODE_NAME, "spec.nodeName", spec["nodeName"]
    for name in ("serviceAccountName", "serviceAccount"):
        if spec.get(name):
            yield Privilege.SERVICE_ACCOUNT, f"spec.{name}", spec[name]
    # In a template, null removes a field that the operator sets.
    if spec.get("automountServiceAccountToken", False) is not False:
        token = spec["automountServiceAccountToken"]
        yield Privilege.SERVICE_ACCOUNT, "spec.automountServiceAccountToken", token
    yield from _in_security_context(spec, "spec")
    yield from _in_volumes(spec.get("volumes"))
    for kind in ("containers", "initContainers", "ephemeralContainers"):
        for i, container in enumerate(_objects(spec.get(kind))):
            where = f"spec.{kind}[{i}]"
            yield from _in_security_context(container, where)
            for j, port in enumerate(_objects(container.get("ports"))):
                if port.get("hostPort"):
                    yield Privilege.HOST_NAMESPACES, f"{where}.ports[{j}].hostPort", port["hostPort"]


def _objects(items: Any) -> list[Object]:
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _in_annotations(metadata: Any) -> Iterator[tuple[Privilege, str, object]]:
    annotations = metadata.get("annotations") if isinstance(metadata, dict) else None
    for name, profile in annotations.items() if isinstance(annotations, dict) else ():
        confined = profile == "runtime/default" or str(profile).startswith("localhost/")
        if str(name).startswith(APPARMOR) and not confined:
            yield Privilege.PRIVILEGED, f"metadata.annotations[{name}]", profile


def _in_volumes(volumes: Any) -> Iterator[tuple[Privilege, str, object]]:
    for i, volume in enumerate(_objects(volumes)):
        where = f"spec.volumes[{i}]"
        if "hostPath" in volume:
            yield Privilege.HOST_PATH, f"{where}.hostPath", volume["hostPath"]
        projected = volume.get("projected")
        for source in _objects(projected.get("sources")) if isinstance(projected, dict) else []:
            if "serviceAccountToken" in source:
                yield Privilege.SERVICE_ACCOUNT, f"{where}.projected", "serviceAccountToken"


_PRIVILEGED_VALUES = {"privileged": True, "allowPrivilegeEscalation": True, "runAsNonRoot": False, "runAsUser": 0}
_SET_BY_OPERATOR = ("runAsNonRoot", "runAsUser", "seccompProfile", "allowPrivilegeEscalation", "capabilities")


def _in_security_context(owner: Object, where: str) -> Iterator[tuple[Privilege, str, object]]:
    context, where = owner.get("securityContext", {}), f"{where}.securityContext"
    if context is None:
        yield Privilege.PRIVILEGED, where, None
    if not isinstance(context, dict):
        return
    for name, value in _privileged_scalars(context):
        yield Privilege.PRIVILEGED, f"{where}.{name}", value
    capabilities = context.get("capabilities")
    if isinstance(capabilities, dict) and capabilities.get("add"):
        yield Privilege.PRIVILEGED, f"{where}.capabilities.add", capabilities["add"]
    for name in ("seccompProfile", "appArmorProfile"):
        profile = context.get(name)
        if isinstance(profile, dict) and profile.get("type") == "Unconfined":
            yield Privilege.PRIVILEGED, f"{where}.{name}.type", "Unconfined"
    for name in ("sysctls", "seLinuxOptions", "windowsOptions"):
        if context.get(name):
            yield Privilege.PRIVILEGED, f"{where}.{name}", context[name]
    if context.get("procMount") not in (None, "Default"):
        yield Privilege.PRIVILEGED, f"{where}.procMount", context["procMount"]


def _privileged_scalars(context: Object) -> Iterator[tuple[str, object]]:
    """(name, value) of fields of a securityContext with a privileged value, or with null, which removes the operator's
    value.
    """
    for name in _SET_BY_OPERATOR:
        if name in context and context[name] is None:
            yield name, None
    for name, privileged_value in _PRIVILEGED_VALUES.items():
        if name in context and context[name] == privileged_value and context[name] is not None:
            yield name, context[name]
