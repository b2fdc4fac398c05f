"""Placement: attempts of another size or on another device, and the objects for gang schedulers."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, ClassVar

import pytest
from support import minimal
from support.plans import DEFAULTS, NOW, after, conditions, created, job, make_plan, pod, reasons
from yolojob_operator.objects import gang_scheduling, pods
from yolojob_operator.objects.metadata import owner_reference
from yolojob_operator.plan.builder import FORCE_AFTER, Obstacle
from yolojob_operator.plan.lifecycle import Plan
from yolojob_operator.plan.node_facts import NodeFacts
from yolojob_operator.plan.placement import MIN_ATTEMPT_AGE, SCALE_UP_INTERVAL, SCHEDULING_TIMEOUT
from yolojob_operator.plan.pod_facts import GRACE_SECONDS, PodFacts

from yolojob.api import rules
from yolojob.api.job import YoloTrainingJob
from yolojob.api.run import Run
from yolojob.api.status import YoloTrainingJobStatus

FULL = 4
UNSCHEDULABLE: dict[str, Any] = {
    "node": "",
    "scheduled": None,
    "started": None,
    "waiting": "Unschedulable: 0/3 nodes are available",
}


def elastic(status: YoloTrainingJobStatus | None = None, replicas: int = FULL, **spec: Any) -> YoloTrainingJob:
    bounds = {"minReplicas": 1, "maxReplicas": 8}
    return job(status, **{"workers": {"replicas": replicas}, "elastic": bounds, "train": {"batch": 16}, **spec})


def workers(planned: Plan) -> list[str]:
    return [o["metadata"]["name"] for o in planned.create if o["kind"] == "Pod"]


def gang_of(size: int, attempt: int = 1, **facts: Any) -> list[PodFacts]:
    return [pod(i, attempt=attempt, **facts) for i in range(size)]


def running(size: int = FULL, **spec: Any) -> YoloTrainingJob:
    initial = make_plan(elastic(replicas=size, **spec)).status
    return elastic(make_plan(elastic(initial, size, **spec), *gang_of(size)).status, size, **spec)


class TestShrink:
    def test_shrink_after_the_scheduling_timeout_uses_the_scheduled_workers(self) -> None:
        status = make_plan(elastic()).status
        existing = [pod(0), pod(1), pod(2), pod(3, "Pending", **UNSCHEDULABLE)]
        early = make_plan(elastic(status), *existing, now=after(5))
        assert early.status.attempt == 1
        assert early.due == NOW + SCHEDULING_TIMEOUT
        planned = make_plan(elastic(early.status), *existing, now=NOW + SCHEDULING_TIMEOUT)
        assert planned.status.attempt == 2
        assert planned.status.history[-1].workers == 2, "the batch of 16 is not divisible by 3"
        assert "0/3 nodes" in (planned.status.history[0].message or "")
        assert (planned.status.restarts, planned.status.disruptions) == (0, 0)
        assert len(planned.delete) == 4
        smaller = make_plan(elastic(planned.status), now=after(30))
        assert workers(smaller) == ["digits-worker-0", "digits-worker-1"]
        environment = {e["name"]: e["value"] for e in created(smaller)[0]["spec"]["containers"][0]["env"]}
        assert environment["PET_NNODES"] == "2"
        assert Run.model_validate_json(environment["YOLOJOB_RUN"]).spec.workers.replicas == 2

    def test_shrink_below_min_replicas_waits(self) -> None:
        bounds: dict[str, Any] = {"elastic": {"minReplicas": 2, "maxReplicas": 4}}
        status = make_plan(elastic(**bounds)).status
        existing = [pod(0), *(pod(i, "Pending", **UNSCHEDULABLE) for i in (1, 2, 3))]
        late = make_plan(elastic(status, **bounds), *existing, now=after(600))
        assert late.status.attempt == 1
        assert conditions(late)["Scheduled"] == ("False", "Unschedulable")

    def test_shrink_because_of_a_quota(self) -> None:
        status = make_plan(elastic()).status
        quota = Obstacle(reason="QuotaExceeded", message="exceeded quota: gpus")
        planned = make_plan(elastic(status), pod(0), pod(1), now=after(60), obstacle=quota)
        assert planned.status.history[-1].workers == 2
        assert "exceeded quota" in (planned.status.history[0].message or "")

    def test_shrink_does_not_follow_a_lost_worker_immediately(self) -> None:
        lost = make_plan(running(), *gang_of(3), pod(3, deleted=after(30)))
        assert lost.status.disruptions == 1
        assert lost.status.history[-1].workers == FULL

    def test_shrink_without_elastic_does_not_happen(self) -> None:
        status = make_plan(job()).status
        planned = make_plan(job(status), pod(0), pod(1, "Pending", **UNSCHEDULABLE), now=after(600))
        assert planned.status.attempt == 1


class TestGrow:
    @staticmethod
    def small() -> YoloTrainingJobStatus:
        """The status of a job that runs with two of four workers since second 30."""
        status = make_plan(elastic()).status
        existing = [pod(0), pod(1), pod(2, "Pending", **UNSCHEDULABLE), pod(3, "Pending", **UNSCHEDULABLE)]
        status = make_plan(elastic(status), *existing, now=after(25)).status
        status = make_plan(elastic(status), now=after(28)).status
        return make_plan(elastic(status), *gang_of(2, 2), now=after(30)).status

    def test_grow_requests_capacity_by_spare_pods(self) -> None:
        status = self.small()
        early = make_plan(elastic(status), *gang_of(2, 2), now=after(31))
        assert workers(early) == []
        assert early.due == after(30) + MIN_ATTEMPT_AGE
        planned = make_plan(elastic(status), *gang_of(2, 2), now=after(61))
        assert workers(planned) == ["digits-worker-2", "digits-worker-3"]
        assert all("sigwait" in o["spec"]["containers"][0]["command"][2] for o in planned.create)
        assert all(o["metadata"]["labels"]["yolojob.dev/spare"] == "true" for o in planned.create)
        spares = [pod(i, "Pending", attempt=2, **UNSCHEDULABLE) for i in (2, 3)]
        waiting = make_plan(elastic(planned.status), *gang_of(2, 2), *spares, now=after(3600))
        assert waiting.status.attempt == 2, "unscheduled pods cost nothing"
        assert (waiting.create, waiting.delete) == ((), ())

    def test_grow_when_all_spares_run_starts_a_larger_attempt(self) -> None:
        status = self.small()
        grown = make_plan(elastic(status), *gang_of(4, 2), now=after(100))
        assert grown.status.attempt == 3
        assert grown.status.history[-1].workers == 4
        assert reasons(grown) == ["ScaledUp"]
        assert len(grown.delete) == 4
        assert all(d.grace_seconds == GRACE_SECONDS for d in grown.delete), "the workers have time to save a checkpoint"

    def test_grow_with_too_few_scheduled_spares_deletes_them(self) -> None:
        status = self.small()
        scheduled = pod(2, attempt=2, scheduled=after(100))
        existing = (*gang_of(2, 2), scheduled, pod(3, "Pending", attempt=2, **UNSCHEDULABLE))
        waiting = make_plan(elastic(status), *existing, now=after(101))
        assert waiting.delete == ()
        assert waiting.due == after(100) + SCHEDULING_TIMEOUT
        planned = make_plan(elastic(status), *existing, now=after(100) + SCHEDULING_TIMEOUT)
        assert {d.name for d in planned.delete} == {"digits-worker-2", "digits-worker-3"}
        assert planned.status.attempt == 2
        later = make_plan(elastic(planned.status), *gang_of(2, 2), now=after(200))
        assert workers(later) == []
        retried = make_plan(elastic(planned.status), *gang_of(2, 2), now=after(120) + SCALE_UP_INTERVAL)
        assert len(workers(retried)) == 2

    def test_grow_with_some_of_the_spares_uses_the_largest_possible_size(self) -> None:
        status = self.small()
        scaled = elastic(status, 8)
        more = [pod(i, attempt=2, scheduled=after(100)) for i in (2, 3, 4)]
        planned = make_plan(scaled, *gang_of(2, 2), *more, now=after(100) + SCHEDULING_TIMEOUT)
        assert planned.status.history[-1].workers == 4

    def test_failed_spare_does_not_end_the_attempt(self) -> None:
        planned = make_plan(elastic(self.small()), *gang_of(2, 2), pod(2, "Failed", attempt=2), now=after(100))
        assert planned.status.attempt == 2
        assert [d.name for d in planned.delete] == ["digits-worker-2"]
        assert planned.due == after(100) + SCALE_UP_INTERVAL, "a kubelet that rejects it gets no new pod every moment"

    def test_spares_refused_by_a_quota_are_requested_again_only_after_an_interval(self) -> None:
        obstacle = Obstacle(reason="QuotaExceeded", message="exceeded quota")
        first = make_plan(elastic(self.small()), *gang_of(2, 2), now=after(100))
        assert len(workers(first)) == 2
        planned = make_plan(elastic(first.status), *gang_of(2, 2), now=after(101), obstacle=obstacle)
        assert workers(planned) == []
        assert planned.due == after(101) + SCALE_UP_INTERVAL
        retried = make_plan(
            elastic(planned.status), *gang_of(2, 2), now=after(101) + SCALE_UP_INTERVAL, obstacle=obstacle
        )
        assert len(workers(retried)) == 2, "requested again after the interval"

    def test_spare_on_a_lost_node_is_deleted_by_force(self) -> None:
        status = self.small()
        lost = pod(2, attempt=2, deleted=after(100), scheduled=after(90))
        assert make_plan(elastic(status), *gang_of(2, 2), lost, now=after(101)).due is not None
        planned = make_plan(elastic(status), *gang_of(2, 2), lost, now=after(100) + FORCE_AFTER)
        assert [(d.name, d.grace_seconds) for d in planned.delete] == [("digits-worker-2", 0)]

    def test_grow_without_elastic_uses_no_spares(self) -> None:
        existing = (*gang_of(2, 2), *(pod(i, attempt=2) for i in (2, 3)))
        planned = make_plan(job(self.small(), workers={"replicas": 4}), *existing, now=after(100))
        assert {d.name for d in planned.delete} >= {"digits-worker-2", "digits-worker-3"}
        assert planned.status.history[-1].workers == 4, "the attempt has the requested size"


class TestScale:
    def test_scale_down_is_immediate(self) -> None:
        current = running()
        assert current.status is not None
        planned = make_plan(elastic(current.status, 2), *gang_of(FULL))
        assert planned.status.history[-1].workers == 2
        assert reasons(planned) == ["ScaledDown"]
        assert make_plan(elastic(planned.status, 2)).status.workers.desired == 2

    def test_scale_up_requests_capacity_first(self) -> None:
        current = running(2)
        assert current.status is not None
        requested = make_plan(elastic(current.status, 4), *gang_of(2), now=NOW + MIN_ATTEMPT_AGE)
        assert workers(requested) == ["digits-worker-2", "digits-worker-3"]

    def test_scale_back_to_the_current_size_deletes_the_spares(self) -> None:
        current = running(2)
        planned = make_plan(current, *gang_of(2), pod(2), pod(3))
        assert {d.name for d in planned.delete} == {"digits-worker-2", "digits-worker-3"}

    def test_finished_job_deletes_its_spares(self) -> None:
        planned = make_plan(running(2), pod(0, "Succeeded"), pod(1, "Succeeded"), pod(2))
        assert planned.status.completion_time is not None
        assert [d.name for d in planned.delete] == ["digits-worker-2"]


class TestGpus:
    GPU: ClassVar[dict[str, Any]] = {"workers": {"replicas": 2, "gpu": {"types": ["T4"], "required": False}}}
    A100 = NodeFacts(
        name="a", labels={"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-40GB"}, devices={"nvidia.com/gpu": 8}
    )
    T4 = NodeFacts(
        name="t", labels={"cloud.google.com/gke-accelerator": "nvidia-tesla-t4"}, devices={"nvidia.com/gpu": 1}
    )

    def test_optional_gpus_without_a_matching_node_train_on_cpus(self) -> None:
        planned = make_plan(job(**self.GPU), nodes={"a": self.A100})
        assert conditions(planned)["Accepted"] == ("True", "NoGpu")
        assert reasons(planned) == ["NoGpu"]
        assert planned.status.history[-1].device == "CPU"
        worker = created(planned)[0]["spec"]
        assert "nvidia.com/gpu" not in worker["containers"][0]["resources"]["limits"]
        assert "affinity" not in worker
        assert not [t for t in worker["tolerations"] if t["key"] == "nvidia.com/gpu"]
        run = {e["name"]: e["value"] for e in worker["containers"][0]["env"]}["YOLOJOB_RUN"]
        assert Run.model_validate_json(run).spec.workers.gpu is None

    def test_optional_gpus_with_a_matching_node_are_used(self) -> None:
        planned = make_plan(job(**self.GPU), nodes={"a": self.A100, "t": self.T4})
        assert conditions(planned)["Accepted"] == ("True", "Accepted")
        assert created(planned)[0]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"

    def test_optional_gpus_that_appear_later_do_not_restart_the_attempt(self) -> None:
        status = make_plan(job(**self.GPU), nodes={}).status
        planned = make_plan(job(status, **self.GPU), pod(0), pod(1), nodes={"t": self.T4})
        assert planned.status.attempt == 1
        assert conditions(planned)["Accepted"] == ("True", "NoGpu")

    def test_optional_gpus_more_than_any_node_has_train_on_cpus(self) -> None:
        spec: dict[str, Any] = {"workers": {"replicas": 2, "gpu": {"count": 2, "types": ["T4"], "required": False}}}
        assert make_plan(job(**spec), nodes={"t": self.T4}).status.history[-1].device == "CPU"


class TestGangs:
    def pod_of(self, **scheduling: Any) -> tuple[dict[str, Any], dict[str, Any] | None]:
        current = job(
            scheduling=scheduling,
            workers={"replicas": 2, "gpu": {"count": 4}, "resources": {"requests": {"cpu": "500m"}}},
        )
        worker = pods.worker(current, 1, 3, DEFAULTS)
        return worker, gang_scheduling.pod_group(current, worker, owner_reference(current))

    def test_kueue_gang_is_labelled_and_has_no_pod_group(self) -> None:
        worker, group = self.pod_of(gang="kueue", queue="team")
        assert worker["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
        assert worker["metadata"]["labels"]["kueue.x-k8s.io/pod-group-name"] == "digits-3"
        assert worker["metadata"]["annotations"]["kueue.x-k8s.io/pod-group-total-count"] == "2"
        assert group is None

    @pytest.mark.parametrize("scheduler", ["volcano", "coscheduling"])
    def test_pod_group_has_the_size_and_resources_of_the_gang(self, scheduler: str) -> None:
        worker, group = self.pod_of(gang=scheduler)
        assert group is not None
        assert group["metadata"]["name"] == "digits"
        assert group["metadata"]["ownerReferences"][0]["uid"] == "job-uid"
        assert group["spec"] == {"minMember": 2, "minResources": {"cpu": "1", "nvidia.com/gpu": "8"}}
        assert worker["spec"]["schedulerName"] in ("volcano", "scheduler-plugins-scheduler")

    def test_pod_group_is_created_before_its_pods(self) -> None:
        planned = make_plan(job(scheduling={"gang": "volcano", "queue": "team"}))
        kinds = [o["kind"] for o in planned.create]
        assert kinds == ["Service", "NetworkPolicy", "PodGroup", "Secret", "Pod", "Pod"]
        assert created(planned, "PodGroup")[0]["spec"]["queue"] == "team"

    def test_pod_group_of_an_elastic_job_requires_only_min_replicas(self) -> None:
        planned = make_plan(elastic(scheduling={"gang": "coscheduling"}))
        assert created(planned, "PodGroup")[0]["spec"]["minMember"] == 1

    def test_kueue_gang_of_an_elastic_job_is_invalid(self) -> None:
        document = minimal(scheduling={"gang": "kueue"}, elastic={"maxReplicas": 2})
        broken = list(rules.violations(YoloTrainingJob.model_validate(document)))
        assert [path for path, _, _ in broken] == ["spec.elastic"]

    def test_kueue_gang_that_was_preempted_is_released(self) -> None:
        """Kueue deletes preempted pods and keeps them by a finalizer: a disruption, and the next attempt has a new
        group.
        """
        spec: dict[str, Any] = {"scheduling": {"gang": "kueue", "queue": "team"}}
        status = make_plan(job(**spec)).status
        status = make_plan(job(status, **spec), pod(0), pod(1)).status
        message = "WorkloadEvictedDueToPreempted: to accommodate a workload"
        preempted: dict[str, Any] = {"deleted": after(30), "kueue_group": "digits-1", "disruption": message}
        planned = make_plan(job(status, **spec), pod(0, **preempted), pod(1, **preempted))
        assert [(planned.status.disruptions, r.name) for r in planned.release] == [(1, "digits-1")]
        assert planned.status.history[0].reason == "WorkloadEvictedDueToPreempted"
        assert planned.create == ()
        worker = created(make_plan(job(planned.status, **spec)))[0]
        assert worker["metadata"]["labels"]["kueue.x-k8s.io/pod-group-name"] == "digits-2"

    def test_gated_pods_are_queued(self) -> None:
        spec: dict[str, Any] = {
            "scheduling": {"gang": "kueue", "queue": "team"},
            "runPolicy": {"preRunningDeadlineSeconds": 60},
        }
        status = make_plan(job(**spec)).status
        gated: dict[str, Any] = {**UNSCHEDULABLE, "gated": True, "waiting": "SchedulingGated: Scheduling is blocked"}
        planned = make_plan(job(status, **spec), pod(0, "Pending", **gated), pod(1, "Pending", **gated))
        assert planned.status.phase == "Queued"
        assert conditions(planned)["Scheduled"] == ("False", "Gated")
        late = make_plan(
            job(planned.status, **spec), pod(0, "Pending", **gated), pod(1, "Pending", **gated), now=after(61)
        )
        assert conditions(late)["Failed"] == ("True", "Gated")


def test_waiting_times_of_the_placement_rules_are_in_order() -> None:
    assert timedelta() < SCHEDULING_TIMEOUT < MIN_ATTEMPT_AGE < SCALE_UP_INTERVAL


@pytest.mark.parametrize(("scheduler", "groups"), [("volcano", 1), ("coscheduling", 1), ("kueue", 0), ("none", 0)])
def test_pod_group_without_pods_is_deleted(scheduler: str, groups: int) -> None:
    """Otherwise the scheduler reserves capacity in the queue for a suspended or finished job."""
    spec: dict[str, Any] = {"scheduling": {"gang": scheduler}}
    status = make_plan(job(**spec)).status
    status = make_plan(job(status, **spec), pod(0), pod(1)).status
    assert make_plan(job(status, **spec), pod(0), pod(1)).disband == ()
    for planned in (
        make_plan(job(status, **spec, runPolicy={"suspend": True}), pod(0), pod(1)),
        make_plan(job(status, **spec, runPolicy={"activeDeadlineSeconds": 1}), pod(0), pod(1), now=after(5)),
        make_plan(job(status, **spec), pod(0, "Succeeded"), pod(1, "Succeeded")),
    ):
        assert len(planned.disband) == groups
        assert all(g["kind"] == "PodGroup" and g["metadata"]["name"] == "digits" for g in planned.disband)
        assert not planned.has_actions or planned.delete or planned.events, "deleting a group alone is no action"
