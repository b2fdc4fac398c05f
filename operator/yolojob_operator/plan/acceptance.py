"""Decides whether a cluster runs a job whose specification is well-formed, and why not. Pure."""

from __future__ import annotations

from yolojob.api.fingerprint import worker_digest
from yolojob.api.reasons import Reason
from yolojob.api.status import ConditionType
from yolojob_operator.kube.types import Object
from yolojob_operator.objects import gang_scheduling, pods, template_policy
from yolojob_operator.objects.template_policy import Privilege
from yolojob_operator.plan.builder import PlanBuilder
from yolojob_operator.plan.events import generation_occasion

Refusal = tuple[str, str]
"""(reason, message) of a condition."""


def refusal(builder: PlanBuilder) -> Refusal | None:
    """Why no pods may be created for the job; None if it is accepted."""
    return (
        _local_uri(builder)
        or _forbidden_scheduling(builder)
        or _forbidden_template(builder)
        or _restart_policy(builder.job.spec.workers.template)
        or _unknown_nodes(builder)
        or _malformed_template(builder)
    )


def _local_uri(builder: PlanBuilder) -> Refusal | None:
    spec = builder.job.spec
    for path, uri in (
        ("dataset.uri", spec.dataset.uri),
        ("storage.uri", spec.storage.uri if spec.storage else None),
        ("model.weights.uri", spec.model.weights.uri if spec.model.weights else None),
    ):
        if uri and uri.scheme == "file":
            return (
                Reason.LAPTOP_ONLY,
                f"spec.{path}: {uri}: file:// is the disk of the local machine; use pvc://CLAIM/PATH on a cluster",
            )
    return None


def _forbidden_template(builder: PlanBuilder) -> Refusal | None:
    defaults, template = builder.defaults, builder.job.spec.workers.template
    if template_policy.is_too_large(template):
        limit = template_policy.MAX_TEMPLATE_BYTES >> 10
        return Reason.TEMPLATE_FORBIDDEN, (
            f"spec.workers.template: is larger than {limit} KiB; put large values into a ConfigMap or a Secret"
        )
    for privilege, path, value in template_policy.disallowed_fields(template):
        account = defaults.service_account
        is_default = privilege is Privilege.SERVICE_ACCOUNT and account is not None and value == account
        if privilege not in defaults.allowed and not is_default:
            return Reason.TEMPLATE_FORBIDDEN, (
                f"spec.workers.template.{path}: {str(value)[:200]}: this installation does not allow it "
                f"(workers.allow: [{privilege}] in its Helm values would); leave it out"
            )
    return None


def _forbidden_scheduling(builder: PlanBuilder) -> Refusal | None:
    """Refuse fields outside of the template that give what the template may not request either."""
    spec, allowed = builder.job.spec, builder.defaults.allowed
    name = spec.scheduling.priority_class_name or ""
    resources = (*spec.workers.resources.requests, *spec.workers.resources.limits)
    device = next((resource for resource in resources if "/" in resource), "")
    for privilege, path, value in (
        (Privilege.SCHEDULING, "scheduling.priorityClassName", name if name.startswith("system-") else ""),
        (Privilege.EXTENDED_RESOURCES, "workers.resources", device),
    ):
        if value and privilege not in allowed:
            return Reason.TEMPLATE_FORBIDDEN, (
                f"spec.{path}: {value}: this installation does not allow it (workers.allow: [{privilege}] in its Helm "
                "values would); leave it out"
            )
    return None


def _restart_policy(template: Object) -> Refusal | None:
    pod_spec = template.get("spec")
    policy = pod_spec.get("restartPolicy", "Never") if isinstance(pod_spec, dict) else "Never"
    if policy == "Never":
        return None
    return Reason.TEMPLATE_FORBIDDEN, (
        f"spec.workers.template.spec.restartPolicy: {policy}: the operator replaces all workers together, limited by "
        "spec.runPolicy.backoffLimit; leave it out"
    )


def _unknown_nodes(builder: PlanBuilder) -> Refusal | None:
    gpu = builder.job.spec.workers.gpu
    if gpu is None or gpu.required or builder.observed.nodes is not None:
        return None
    return (
        Reason.NODES_UNKNOWN,
        "spec.workers.gpu.required: false: this operator watches single namespaces and may not list nodes, so it "
        "cannot find out whether the cluster has GPUs; set it to true, or leave spec.workers.gpu out to train on CPUs",
    )


def _malformed_template(builder: PlanBuilder) -> Refusal | None:
    """Why no pod can be built from the template, in which the API server stores any content.

    It is checked only when pods are to be created.
    """
    job = builder.as_attempted()
    grows = job.spec.elastic is not None and builder.job.spec.workers.replicas > builder.size
    if not job.spec.workers.template or (len(builder.current) == builder.size and not grows):
        return None
    try:
        gang_scheduling.pod_group(job, pods.worker(job, 0, 1, builder.defaults), {})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return Reason.TEMPLATE_INVALID, (
            f"spec.workers.template: no pod can be built from it ({type(error).__name__}: {error}); "
            "`kubectl explain pod.spec` lists the fields"
        )
    return None


def accept(builder: PlanBuilder) -> None:
    """Accept the specification, and say if the running workers have an earlier one."""
    record, generation = builder.record, builder.job.metadata.generation
    edited = any(p.generation not in (0, generation) for p in builder.current)
    if not edited or record is None or record.spec_digest in (None, worker_digest(builder.job.spec)):
        builder.condition(ConditionType.ACCEPTED, "True", Reason.ACCEPTED, "the specification can be run")
        return
    message = (
        f"attempt {record.attempt} keeps the specification with which it started; the edit applies from the next "
        "attempt (suspend and resume the job to start one)"
    )
    builder.condition(ConditionType.ACCEPTED, "True", Reason.EDIT_PENDING, message)
    if builder.status.observed_generation != generation:
        builder.event("Normal", Reason.EDIT_PENDING, message, generation_occasion(generation or 0))
