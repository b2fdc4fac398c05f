"""Finds fields of `spec.workers.template` that request more than an ordinary pod may have. Pure.

The operator creates pods with its own rights. Without this check, a user who may create jobs but not such pods could
have the operator create them. The tables list what a template may contain; everything else needs a privilege that the
installation allows by name, also a field that a later Kubernetes adds. Without privileges, every pod satisfies the Pod
Security level "restricted" (https://kubernetes.io/docs/concepts/security/pod-security-standards/).
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from yolojob.api import constants
from yolojob_operator.kube.types import Object

MAX_TEMPLATE_BYTES = 16 << 10
"""Largest template, as JSON. The operator keeps every job in memory."""
MAX_GRACE_SECONDS = 600
"""Longest terminationGracePeriodSeconds: a suspension, a deadline and a deletion wait that long for the workers."""
APPARMOR = "container.apparmor.security.beta.kubernetes.io/"
"""Prefix of the annotations that set AppArmor profiles before the pod had a field for them
(kubernetes.io/docs/tutorials/security/apparmor). API servers and kubelets still apply them."""
RESERVED_DOMAINS = (
    "kubernetes.io",
    "k8s.io",
    "x-k8s.io",
    "yolojob.dev",
    "amazonaws.com",
    "azure.workload.identity",
    "cncf.io",
    "gke.io",
    "hashicorp.com",
    "k8s.ovn.org",
    "multus-cni.io",
    "nri.io",
    "volcano.sh",
)
"""Domains of labels and annotations by which controllers, networks and clouds give a pod more than it has."""
HARMLESS_METADATA = ("app.kubernetes.io/", "cluster-autoscaler.kubernetes.io/safe-to-evict")
"""Beginnings of names of these domains that a template may contain."""


class Privilege(enum.StrEnum):
    """A privilege that an installation can allow."""

    HOST_NAMESPACES = "hostNamespaces"
    """hostNetwork, hostPID, hostIPC, host ports, and probes of other hosts, which the node sends."""
    HOST_PATH = "hostPath"
    """Volumes with files of the node."""
    PRIVILEGED = "privileged"
    """Privileged containers, capabilities, root, a writable root of the trainer, no seccomp profile, sysctls."""
    SERVICE_ACCOUNT = "serviceAccount"
    """A service account other than the installation's, or tokens and certificates of one."""
    NODE_NAME = "nodeName"
    """A fixed node, which bypasses the scheduler and every queue."""
    SCHEDULING = "scheduling"
    """Priority, other schedulers and runtimes, scheduling gates, control plane nodes, tolerations of every taint."""
    OTHER_VOLUMES = "otherVolumes"
    """Volumes other than emptyDir, configMap, secret, persistentVolumeClaim, downwardAPI and projections of these."""
    EXTENDED_RESOURCES = "extendedResources"
    """Devices besides spec.workers.gpu."""
    RESERVED_METADATA = "reservedMetadata"
    """Labels and annotations of Kubernetes, clouds and other controllers."""
    OTHER_FIELDS = "otherFields"
    """All other fields of a pod, also those of Kubernetes versions that this policy does not know."""


Finding = tuple[Privilege, str, object]
"""(privilege that is needed, path below spec.workers.template, value)."""
Check = Callable[[Any, str], Iterator[Finding]]
"""Yields what a value, at a path, needs."""
Fields = Mapping[str, "Check | Privilege | None"]
"""By name of a field: how it is checked, the privilege that it needs, or None if it needs none."""


def disallowed_fields(template: Object) -> Iterator[Finding]:
    """What a template contains beyond an ordinary pod."""
    yield from _fields(template, "", {"metadata": _metadata, "spec": _pod})


def is_too_large(template: Object) -> bool:
    """Whether a template is larger than MAX_TEMPLATE_BYTES."""
    return len(json.dumps(template)) > MAX_TEMPLATE_BYTES


# --- kinds of checks --------------------------------------------------------------------------------------------------


def _fields(value: Any, where: str, fields: Fields) -> Iterator[Finding]:
    """Check an object whose fields are listed. What has another type is refused by the API server."""
    for name, child in value.items() if isinstance(value, dict) else ():
        path = f"{where}.{name}" if where else str(name)
        check = fields.get(name, Privilege.OTHER_FIELDS)
        if isinstance(check, Privilege):
            # Null removes a field; one that the operator does not set is then absent.
            if child or (name not in fields and child is not None):
                yield check, path, child
        elif check is not None:
            yield from check(child, path)


def _each(check: Check) -> Check:
    def run(value: Any, where: str) -> Iterator[Finding]:
        for i, child in enumerate(value if isinstance(value, list) else ()):
            yield from check(child, f"{where}[{i}]")

    return run


def _object(fields: Fields) -> Check:
    return lambda value, where: _fields(value, where, fields)


def _unless(privilege: Privilege, accepts: Callable[[Any], bool], *, set_by_operator: bool = True) -> Check:
    """A value needs a privilege unless it is accepted. Null would remove a value that the operator sets."""

    def run(value: Any, where: str) -> Iterator[Finding]:
        if not accepts(value) and (value is not None or set_by_operator):
            yield privilege, where, value

    return run


def _is(*accepted: object) -> Callable[[Any], bool]:
    return lambda value: any(type(value) is type(one) and value == one for one in accepted)


def _is_user(value: Any) -> bool:
    """A user or group other than root's."""
    return type(value) is int and value > 0


def _are_users(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_user, value))


def _type_is(*accepted: str) -> Callable[[Any], bool]:
    """A profile of one of these types."""
    return lambda value: isinstance(value, dict) and set(value) == {"type"} and value["type"] in accepted


# --- metadata ---------------------------------------------------------------------------------------------------------


def _metadata(value: Any, where: str) -> Iterator[Finding]:
    yield from _fields(value, where, {"labels": _names, "annotations": _names})


def _names(value: Any, where: str) -> Iterator[Finding]:
    for name, content in value.items() if isinstance(value, dict) else ():
        path = f"{where}[{name}]"
        if str(name).startswith(APPARMOR):
            if content != "runtime/default" and not str(content).startswith("localhost/"):
                yield Privilege.PRIVILEGED, path, content
        elif _is_reserved(str(name)):
            yield Privilege.RESERVED_METADATA, path, content


def _is_reserved(name: str) -> bool:
    # Container runtimes read names such as io.kubernetes.cri-o.Devices, which have a domain but no slash.
    domain = name.partition("/")[0] if "/" in name else ".".join(reversed(name.split(".")[:2]))
    reserved = any(domain == known or domain.endswith(f".{known}") for known in RESERVED_DOMAINS)
    return reserved and not name.startswith(HARMLESS_METADATA)


# --- the pod ----------------------------------------------------------------------------------------------------------


def _drops_all(value: Any) -> bool:
    """Capabilities that drop all and add none."""
    if not isinstance(value, dict) or not set(value) <= {"drop", "add"} or value.get("add"):
        return False
    return isinstance(value.get("drop"), list) and "ALL" in value["drop"]


_NEVER_ROOT = _unless(Privilege.PRIVILEGED, _is_user)
_SECURITY: Fields = {
    "allowPrivilegeEscalation": _unless(Privilege.PRIVILEGED, _is(False)),
    "appArmorProfile": _unless(Privilege.PRIVILEGED, _type_is("RuntimeDefault"), set_by_operator=False),
    "capabilities": _unless(
        Privilege.PRIVILEGED,
        _drops_all,
    ),
    "fsGroup": _NEVER_ROOT,
    "fsGroupChangePolicy": None,
    "privileged": _unless(Privilege.PRIVILEGED, _is(False), set_by_operator=False),
    "procMount": _unless(Privilege.PRIVILEGED, _is("Default"), set_by_operator=False),
    "readOnlyRootFilesystem": _unless(Privilege.PRIVILEGED, _is(True)),
    "runAsGroup": _NEVER_ROOT,
    "runAsNonRoot": _unless(Privilege.PRIVILEGED, _is(True)),
    "runAsUser": _NEVER_ROOT,
    "seLinuxChangePolicy": None,
    "seLinuxOptions": Privilege.PRIVILEGED,
    "seccompProfile": _unless(Privilege.PRIVILEGED, _type_is("RuntimeDefault")),
    "supplementalGroups": _unless(Privilege.PRIVILEGED, _are_users, set_by_operator=False),
    "supplementalGroupsPolicy": None,
    "sysctls": Privilege.PRIVILEGED,
    "windowsOptions": Privilege.PRIVILEGED,
}
_OTHER_CONTAINERS_SECURITY: Fields = {
    **_SECURITY,
    "readOnlyRootFilesystem": None,  # other images may write to theirs, which nobody else sees
}


def _security_context(fields: Fields) -> Check:
    def run(value: Any, where: str) -> Iterator[Finding]:
        if value is None:
            yield Privilege.PRIVILEGED, where, None
        yield from _fields(value, where, fields)

    return run


def _hosts(value: Any, where: str) -> Iterator[Finding]:
    """Find hosts in probes and lifecycle hooks: the kubelet connects to them from the node's network."""
    for name, child in value.items() if isinstance(value, dict) else ():
        if name == "host" and child:
            yield Privilege.HOST_NAMESPACES, f"{where}.host", child
        yield from _hosts(child, f"{where}.{name}")


def _resources(value: Any, where: str) -> Iterator[Finding]:
    for kind, amounts in value.items() if isinstance(value, dict) else ():
        if kind not in ("requests", "limits"):
            yield Privilege.EXTENDED_RESOURCES, f"{where}.{kind}", amounts
            continue
        for name, amount in amounts.items() if isinstance(amounts, dict) else ():
            if "/" in str(name):
                yield Privilege.EXTENDED_RESOURCES, f"{where}.{kind}[{name}]", amount


_PORT: Fields = {
    "containerPort": None,
    "hostIP": Privilege.HOST_NAMESPACES,
    "hostPort": Privilege.HOST_NAMESPACES,
    "name": None,
    "protocol": None,
}
_MOUNT: Fields = {
    "mountPath": None,
    "mountPropagation": _unless(Privilege.PRIVILEGED, _is("None"), set_by_operator=False),
    "name": None,
    "readOnly": None,
    "recursiveReadOnly": None,
    "subPath": None,
    "subPathExpr": None,
}
_CONTAINER: Fields = {
    "args": None,
    "command": None,
    "env": None,
    "envFrom": None,
    "image": None,
    "imagePullPolicy": None,
    "lifecycle": _hosts,
    "livenessProbe": _hosts,
    "name": None,
    "ports": _each(_object(_PORT)),
    "readinessProbe": _hosts,
    "resizePolicy": None,
    "resources": _resources,
    "restartPolicy": Privilege.OTHER_FIELDS,
    "restartPolicyRules": Privilege.OTHER_FIELDS,
    "securityContext": None,  # depends on the container
    "startupProbe": _hosts,
    "stdin": None,
    "stdinOnce": None,
    "terminationMessagePath": None,
    "terminationMessagePolicy": None,
    "tty": None,
    "volumeDevices": Privilege.OTHER_VOLUMES,
    "volumeMounts": _each(_object(_MOUNT)),
    "workingDir": None,
}


def _container(value: Any, where: str) -> Iterator[Finding]:
    trainer = isinstance(value, dict) and value.get("name") == constants.CONTAINER
    security = _SECURITY if trainer else _OTHER_CONTAINERS_SECURITY
    yield from _fields(value, where, {**_CONTAINER, "securityContext": _security_context(security)})


def _init_container(value: Any, where: str) -> Iterator[Finding]:
    # One that always restarts is a sidecar that starts before the trainer and ends after it.
    sidecar = _unless(Privilege.OTHER_FIELDS, _is("Always"), set_by_operator=False)
    security = _security_context(_OTHER_CONTAINERS_SECURITY)
    yield from _fields(value, where, {**_CONTAINER, "restartPolicy": sidecar, "securityContext": security})


def _empty_dir(value: Any, where: str) -> Iterator[Finding]:
    if isinstance(value, dict) and value.get("medium") and not value.get("sizeLimit"):
        yield Privilege.OTHER_VOLUMES, f"{where}.medium", f"{value['medium']} without sizeLimit"


_PROJECTION: Fields = {
    "clusterTrustBundle": None,
    "configMap": None,
    "downwardAPI": None,
    "podCertificate": Privilege.SERVICE_ACCOUNT,
    "secret": None,
    "serviceAccountToken": Privilege.SERVICE_ACCOUNT,
}
_VOLUME_KINDS: Fields = {
    "configMap": None,
    "downwardAPI": None,
    "emptyDir": _empty_dir,
    "hostPath": Privilege.HOST_PATH,
    "name": None,
    "persistentVolumeClaim": None,
    "projected": _object({"defaultMode": None, "sources": _each(_object(_PROJECTION))}),
    "secret": None,
}


def _volume(value: Any, where: str) -> Iterator[Finding]:
    for privilege, path, found in _fields(value, where, _VOLUME_KINDS):
        unknown_kind = privilege is Privilege.OTHER_FIELDS and path.count(".") == where.count(".") + 1
        yield Privilege.OTHER_VOLUMES if unknown_kind else privilege, path, found


def _toleration(value: Any, where: str) -> Iterator[Finding]:
    key = value.get("key") if isinstance(value, dict) else "malformed"
    if not key or str(key) in ("node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"):
        yield Privilege.SCHEDULING, where, value


_POD: Fields = {
    "activeDeadlineSeconds": Privilege.OTHER_FIELDS,
    "affinity": None,
    "automountServiceAccountToken": _unless(Privilege.SERVICE_ACCOUNT, _is(False)),
    "containers": _each(_container),
    "dnsConfig": None,
    "dnsPolicy": None,
    "enableServiceLinks": None,
    "ephemeralContainers": Privilege.OTHER_FIELDS,
    "hostAliases": None,
    "hostIPC": Privilege.HOST_NAMESPACES,
    "hostNetwork": Privilege.HOST_NAMESPACES,
    "hostPID": Privilege.HOST_NAMESPACES,
    "hostUsers": _unless(Privilege.PRIVILEGED, _is(False), set_by_operator=False),
    "hostname": Privilege.OTHER_FIELDS,
    "hostnameOverride": Privilege.OTHER_FIELDS,
    "imagePullSecrets": None,
    "initContainers": _each(_init_container),
    "nodeName": Privilege.NODE_NAME,
    "nodeSelector": None,
    "os": Privilege.OTHER_FIELDS,
    "overhead": Privilege.SCHEDULING,
    "preemptionPolicy": Privilege.SCHEDULING,
    "priority": Privilege.SCHEDULING,
    "priorityClassName": Privilege.SCHEDULING,
    "readinessGates": Privilege.OTHER_FIELDS,
    "resourceClaims": Privilege.EXTENDED_RESOURCES,
    "resources": _resources,
    "restartPolicy": None,  # `plan.acceptance` says what to do instead
    "runtimeClassName": Privilege.SCHEDULING,
    "schedulerName": Privilege.SCHEDULING,
    "schedulingGates": Privilege.SCHEDULING,
    "securityContext": _security_context(_SECURITY),
    "serviceAccount": Privilege.SERVICE_ACCOUNT,
    "serviceAccountName": Privilege.SERVICE_ACCOUNT,
    "setHostnameAsFQDN": Privilege.OTHER_FIELDS,
    "shareProcessNamespace": None,
    "subdomain": Privilege.OTHER_FIELDS,
    "terminationGracePeriodSeconds": _unless(
        Privilege.OTHER_FIELDS, lambda v: type(v) is int and 0 <= v <= MAX_GRACE_SECONDS, set_by_operator=False
    ),
    "tolerations": _each(_toleration),
    "topologySpreadConstraints": None,
    "volumes": _each(_volume),
    "workloadRef": Privilege.SCHEDULING,
}


def _pod(value: Any, where: str) -> Iterator[Finding]:
    yield from _fields(value, where, _POD)


DECIDED: Mapping[str, Fields] = {
    "Container": _CONTAINER,
    "ContainerPort": _PORT,
    "PodSecurityContext": _SECURITY,
    "PodSpec": _POD,
    "SecurityContext": _SECURITY,
    "VolumeMount": _MOUNT,
    "VolumeProjection": _PROJECTION,
}
"""Fields of Kubernetes' types that this policy has decided on. A test compares them with those of an API server."""
