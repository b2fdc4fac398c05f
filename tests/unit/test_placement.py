"""Attempts of another size, on another device, and what gang schedulers are told."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from support import minimal
from support.plans import DEFAULTS, NOW, after, conditions, job, make, pod, reasons
from yolojob_operator.objects import gang_scheduling, pods
from yolojob_operator.plan.builder import FORCE_AFTER, Obstacle
from yolojob_operator.plan.lifecycle import Plan
from yolojob_operator.plan.node_facts import NodeFacts
from yolojob_operator.plan.placement import MIN_ATTEMPT_AGE, SCALE_UP_INTERVAL, SCHEDULING_TIMEOUT
from yolojob_operator.plan.pod_facts import PodFacts

from yolojob.api import rules
from yolojob.api.job import YoloTrainingJob
from yolojob.api.run import Run
from yolojob.api.status import YoloTrainingJobStatus

FULL = 4
NO_ROOM = {"node": "", "scheduled": None, "started": None, "waiting": "Unschedulable: 0/3 nodes are available"}


def elastic(status: YoloTrainingJobStatus | None = None, replicas: int = FULL, **spec: Any) -> YoloTrainingJob:
    bounds = {"minReplicas": 1, "maxReplicas": 8}
    return job(status, **{"workers": {"replicas": replicas}, "elastic": bounds, "train": {"batch": 16}, **spec})


def workers(made: Plan) -> list[str]:
    return [o["metadata"]["name"] for o in made.create if o["kind"] == "Pod"]


def gang_of(size: int, attempt: int = 1, **facts: Any) -> list[PodFacts]:
    return [pod(i, attempt=attempt, **facts) for i in range(size)]


def running(size: int = FULL, **spec: Any) -> YoloTrainingJob:
    first = make(elastic(replicas=size, **spec)).status
    return elastic(make(elastic(first, size, **spec), *gang_of(size)).status, size, **spec)


class TestShrink:
    def test_places_that_were_found_are_used_when_the_others_are_not_to_be_had(self) -> None:
        status = make(elastic()).status
        found = [pod(0), pod(1), pod(2), pod(3, "Pending", **NO_ROOM)]
        early = make(elastic(status), *found, now=after(5))
        assert early.status.attempt == 1
        assert early.due == NOW + SCHEDULING_TIMEOUT
        made = make(elastic(early.status), *found, now=NOW + SCHEDULING_TIMEOUT)
        assert made.status.attempt == 2
        assert made.status.history[-1].workers == 2, "3 is no divisor of the batch of 16"
        assert "0/3 nodes" in (made.status.history[0].message or "")
        assert (made.status.restarts, made.status.disruptions) == (0, 0)
        assert len(made.delete) == 4
        smaller = make(elastic(made.status), now=after(30))
        assert workers(smaller) == ["digits-worker-0", "digits-worker-1"]
        environment = {e["name"]: e["value"] for e in smaller.create[1]["spec"]["containers"][0]["env"]}
        assert environment["PET_NNODES"] == "2"
        assert Run.model_validate_json(environment["YOLOJOB_RUN"]).spec.workers.replicas == 2

    def test_fewer_than_the_least_wait(self) -> None:
        bounds = {"elastic": {"minReplicas": 2, "maxReplicas": 4}}
        status = make(elastic(**bounds)).status
        found = [pod(0), *(pod(i, "Pending", **NO_ROOM) for i in (1, 2, 3))]
        late = make(elastic(status, **bounds), *found, now=after(600))
        assert late.status.attempt == 1
        assert conditions(late)["Scheduled"] == ("False", "Unschedulable")

    def test_a_quota_makes_it_smaller_too(self) -> None:
        status = make(elastic()).status
        quota = Obstacle(reason="QuotaExceeded", message="exceeded quota: gpus")
        made = make(elastic(status), pod(0), pod(1), now=after(60), obstacle=quota)
        assert made.status.history[-1].workers == 2
        assert "exceeded quota" in (made.status.history[0].message or "")

    def test_a_lost_worker_is_first_waited_for(self) -> None:
        lost = make(running(), *gang_of(3), pod(3, deleted=after(30)))
        assert lost.status.disruptions == 1
        assert lost.status.history[-1].workers == FULL

    def test_a_fixed_job_keeps_its_size(self) -> None:
        status = make(job()).status
        made = make(job(status), pod(0), pod(1, "Pending", **NO_ROOM), now=after(600))
        assert made.status.attempt == 1


class TestGrow:
    @staticmethod
    def small() -> YoloTrainingJobStatus:
        """Runs with two of four workers since second 30."""
        status = make(elastic()).status
        found = [pod(0), pod(1), pod(2, "Pending", **NO_ROOM), pod(3, "Pending", **NO_ROOM)]
        status = make(elastic(status), *found, now=after(25)).status
        status = make(elastic(status), now=after(28)).status
        return make(elastic(status), *gang_of(2, 2), now=after(30)).status

    def test_room_is_looked_for_by_pods_that_do_nothing(self) -> None:
        status = self.small()
        early = make(elastic(status), *gang_of(2, 2), now=after(31))
        assert workers(early) == []
        assert early.due == after(30) + MIN_ATTEMPT_AGE
        made = make(elastic(status), *gang_of(2, 2), now=after(61))
        assert workers(made) == ["digits-worker-2", "digits-worker-3"]
        assert all("sigwait" in o["spec"]["containers"][0]["command"][2] for o in made.create)
        assert all(o["metadata"]["labels"]["yolojob.dev/spare"] == "true" for o in made.create)
        seeking = [pod(i, "Pending", attempt=2, **NO_ROOM) for i in (2, 3)]
        waiting = make(elastic(made.status), *gang_of(2, 2), *seeking, now=after(3600))
        assert waiting.status.attempt == 2, "pods that have no place cost nothing"
        assert (waiting.create, waiting.delete) == ((), ())

    def test_when_all_have_room_a_larger_attempt_goes_on(self) -> None:
        status = self.small()
        grown = make(elastic(status), *gang_of(4, 2), now=after(100))
        assert grown.status.attempt == 3
        assert grown.status.history[-1].workers == 4
        assert reasons(grown) == ["ScaledUp"]
        assert len(grown.delete) == 4
        assert all(d.grace_seconds is None for d in grown.delete), "time to save"

    def test_a_spare_alone_is_let_go_where_it_does_not_help(self) -> None:
        status = self.small()
        one = pod(2, attempt=2, scheduled=after(100))
        found = (*gang_of(2, 2), one, pod(3, "Pending", attempt=2, **NO_ROOM))
        waiting = make(elastic(status), *found, now=after(101))
        assert waiting.delete == ()
        assert waiting.due == after(100) + SCHEDULING_TIMEOUT
        made = make(elastic(status), *found, now=after(100) + SCHEDULING_TIMEOUT)
        assert {d.name for d in made.delete} == {"digits-worker-2", "digits-worker-3"}
        assert made.status.attempt == 2
        later = make(elastic(made.status), *gang_of(2, 2), now=after(200))
        assert workers(later) == []
        again = make(elastic(made.status), *gang_of(2, 2), now=after(120) + SCALE_UP_INTERVAL)
        assert len(workers(again)) == 2

    def test_some_room_is_better_than_none(self) -> None:
        status = self.small()
        scaled = elastic(status, 8)
        more = [pod(i, attempt=2, scheduled=after(100)) for i in (2, 3, 4)]
        made = make(scaled, *gang_of(2, 2), *more, now=after(100) + SCHEDULING_TIMEOUT)
        assert made.status.history[-1].workers == 4

    def test_a_spares_end_is_not_the_jobs(self) -> None:
        made = make(elastic(self.small()), *gang_of(2, 2), pod(2, "Failed", attempt=2), now=after(100))
        assert made.status.attempt == 2
        assert [d.name for d in made.delete] == ["digits-worker-2"]
        assert made.due == after(100) + SCALE_UP_INTERVAL, "a kubelet that refuses it is not asked again and again"

    def test_a_quota_that_refuses_spares_is_not_asked_again_and_again(self) -> None:
        refused = Obstacle(reason="QuotaExceeded", message="exceeded quota")
        first = make(elastic(self.small()), *gang_of(2, 2), now=after(100))
        assert len(workers(first)) == 2
        made = make(elastic(first.status), *gang_of(2, 2), now=after(101), obstacle=refused)
        assert workers(made) == []
        assert made.due == after(101) + SCALE_UP_INTERVAL
        again = make(elastic(made.status), *gang_of(2, 2), now=after(101) + SCALE_UP_INTERVAL, obstacle=refused)
        assert len(workers(again)) == 2, "and after a while it is"

    def test_a_spare_on_a_lost_node_is_forced_and_replaced(self) -> None:
        status = self.small()
        lost = pod(2, attempt=2, deleted=after(100), scheduled=after(90))
        assert make(elastic(status), *gang_of(2, 2), lost, now=after(101)).due is not None
        made = make(elastic(status), *gang_of(2, 2), lost, now=after(100) + FORCE_AFTER)
        assert [(d.name, d.grace_seconds) for d in made.delete] == [("digits-worker-2", 0)]

    def test_without_elastic_nobody_looks_for_room(self) -> None:
        found = (*gang_of(2, 2), *(pod(i, attempt=2) for i in (2, 3)))
        made = make(job(self.small(), workers={"replicas": 4}), *found, now=after(100))
        assert {d.name for d in made.delete} >= {"digits-worker-2", "digits-worker-3"}
        assert made.status.history[-1].workers == 4, "and it has the size that is asked for"


class TestScale:
    def test_down_at_once(self) -> None:
        current = running()
        assert current.status is not None
        made = make(elastic(current.status, 2), *gang_of(FULL))
        assert made.status.history[-1].workers == 2
        assert reasons(made) == ["ScaledDown"]
        assert make(elastic(made.status, 2)).status.workers.desired == 2

    def test_up_when_there_is_room(self) -> None:
        current = running(2)
        assert current.status is not None
        asked = make(elastic(current.status, 4), *gang_of(2), now=NOW + MIN_ATTEMPT_AGE)
        assert workers(asked) == ["digits-worker-2", "digits-worker-3"]

    def test_back_to_what_it_is_removes_the_spares(self) -> None:
        current = running(2)
        made = make(current, *gang_of(2), pod(2), pod(3))
        assert {d.name for d in made.delete} == {"digits-worker-2", "digits-worker-3"}

    def test_no_spare_survives_the_end(self) -> None:
        made = make(running(2), pod(0, "Succeeded"), pod(1, "Succeeded"), pod(2))
        assert made.status.completion_time is not None
        assert [d.name for d in made.delete] == ["digits-worker-2"]


class TestGpus:
    GPU: dict[str, Any] = {"workers": {"replicas": 2, "gpu": {"types": ["T4"], "required": False}}}  # noqa: RUF012
    A100 = NodeFacts(
        name="a", labels={"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-40GB"}, devices={"nvidia.com/gpu": 8}
    )
    T4 = NodeFacts(
        name="t", labels={"cloud.google.com/gke-accelerator": "nvidia-tesla-t4"}, devices={"nvidia.com/gpu": 1}
    )

    def test_without_such_gpus_it_trains_on_cpus_and_says_so(self) -> None:
        made = make(job(**self.GPU), nodes={"a": self.A100})
        assert conditions(made)["Accepted"] == ("True", "NoGpu")
        assert reasons(made) == ["NoGpu"]
        assert made.status.history[-1].device == "CPU"
        worker = made.create[1]["spec"]
        assert "nvidia.com/gpu" not in worker["containers"][0]["resources"]["limits"]
        assert "affinity" not in worker
        assert not [t for t in worker["tolerations"] if t["key"] == "nvidia.com/gpu"]
        run = {e["name"]: e["value"] for e in worker["containers"][0]["env"]}["YOLOJOB_RUN"]
        assert Run.model_validate_json(run).spec.workers.gpu is None

    def test_with_them_it_uses_them(self) -> None:
        made = make(job(**self.GPU), nodes={"a": self.A100, "t": self.T4})
        assert conditions(made)["Accepted"] == ("True", "Accepted")
        assert made.create[1]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"

    def test_the_running_attempt_is_left_alone_when_gpus_come(self) -> None:
        status = make(job(**self.GPU), nodes={}).status
        made = make(job(status, **self.GPU), pod(0), pod(1), nodes={"t": self.T4})
        assert made.status.attempt == 1
        assert conditions(made)["Accepted"] == ("True", "NoGpu")

    def test_more_gpus_than_any_node_has_are_none(self) -> None:
        spec: dict[str, Any] = {"workers": {"replicas": 2, "gpu": {"count": 2, "types": ["T4"], "required": False}}}
        assert make(job(**spec), nodes={"t": self.T4}).status.history[-1].device == "CPU"


class TestGangs:
    def pod_of(self, **scheduling: Any) -> tuple[dict[str, Any], dict[str, Any] | None]:
        of = job(
            scheduling=scheduling,
            workers={"replicas": 2, "gpu": {"count": 4}, "resources": {"requests": {"cpu": "500m"}}},
        )
        worker = pods.worker(of, 1, 3, DEFAULTS)
        return worker, gang_scheduling.pod_group(of, worker, pods.owner_reference(of))

    def test_kueue(self) -> None:
        worker, group = self.pod_of(gang="kueue", queue="team")
        assert worker["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
        assert worker["metadata"]["labels"]["kueue.x-k8s.io/pod-group-name"] == "digits-3"
        assert worker["metadata"]["annotations"]["kueue.x-k8s.io/pod-group-total-count"] == "2"
        assert group is None

    @pytest.mark.parametrize("scheduler", ["volcano", "coscheduling"])
    def test_pod_groups(self, scheduler: str) -> None:
        worker, group = self.pod_of(gang=scheduler)
        assert group is not None
        assert group["metadata"]["name"] == "digits"
        assert group["metadata"]["ownerReferences"][0]["uid"] == "job-uid"
        assert group["spec"] == {"minMember": 2, "minResources": {"cpu": "1", "nvidia.com/gpu": "8"}}
        assert worker["spec"]["schedulerName"] in ("volcano", "scheduler-plugins-scheduler")

    def test_a_gang_is_asked_for_before_its_pods(self) -> None:
        made = make(job(scheduling={"gang": "volcano", "queue": "team"}))
        assert [o["kind"] for o in made.create] == ["Service", "PodGroup", "Pod", "Pod"]
        assert made.create[1]["spec"]["queue"] == "team"

    def test_an_elastic_gang_needs_only_the_least(self) -> None:
        made = make(elastic(scheduling={"gang": "coscheduling"}))
        assert made.create[1]["spec"]["minMember"] == 1

    def test_kueue_has_no_groups_of_changing_size(self) -> None:
        document = minimal(scheduling={"gang": "kueue"}, elastic={"maxReplicas": 2})
        broken = list(rules.violations(YoloTrainingJob.model_validate(document)))
        assert [path for path, _, _ in broken] == ["spec.elastic"]

    def test_what_kueue_keeps_is_released(self) -> None:
        """A preempted pod that Kueue has deleted and keeps: a disruption, and its group is given up for a new one."""
        spec = {"scheduling": {"gang": "kueue", "queue": "team"}}
        status = make(job(**spec)).status
        status = make(job(status, **spec), pod(0), pod(1)).status
        words = "WorkloadEvictedDueToPreempted: to accommodate a workload"
        gone = {"deleted": after(30), "kueue_group": "digits-1", "disruption": words}
        made = make(job(status, **spec), pod(0, **gone), pod(1, **gone))
        assert (made.status.disruptions, made.release) == (1, ("digits-1",))
        assert made.status.history[0].reason == "WorkloadEvictedDueToPreempted"
        assert made.create == ()
        again = make(job(made.status, **spec)).create[1]
        assert again["metadata"]["labels"]["kueue.x-k8s.io/pod-group-name"] == "digits-2"

    def test_held_pods_are_queued(self) -> None:
        spec = {"scheduling": {"gang": "kueue", "queue": "team"}, "runPolicy": {"preRunningDeadlineSeconds": 60}}
        status = make(job(**spec)).status
        held = {**NO_ROOM, "gated": True, "waiting": "SchedulingGated: Scheduling is blocked"}
        made = make(job(status, **spec), pod(0, "Pending", **held), pod(1, "Pending", **held))
        assert made.status.phase == "Queued"
        assert conditions(made)["Scheduled"] == ("False", "Gated")
        late = make(job(made.status, **spec), pod(0, "Pending", **held), pod(1, "Pending", **held), now=after(61))
        assert conditions(late)["Failed"] == ("True", "Gated")


def test_patience_outlasts_the_scheduler() -> None:
    """The waits of the rules above, in the order in which they must be."""
    assert timedelta() < SCHEDULING_TIMEOUT < MIN_ATTEMPT_AGE < SCALE_UP_INTERVAL


@pytest.mark.parametrize(("scheduler", "groups"), [("volcano", 1), ("coscheduling", 1), ("kueue", 0), ("none", 0)])
def test_a_group_without_pods_reserves_no_room(scheduler: str, groups: int) -> None:
    """Suspended, or at its end: its scheduler would keep room in the queue for it."""
    spec: dict[str, Any] = {"scheduling": {"gang": scheduler}}
    status = make(job(**spec)).status
    status = make(job(status, **spec), pod(0), pod(1)).status
    assert make(job(status, **spec), pod(0), pod(1)).disband == ()
    for made in (
        make(job(status, **spec, runPolicy={"suspend": True}), pod(0), pod(1)),
        make(job(status, **spec, runPolicy={"activeDeadlineSeconds": 1}), pod(0), pod(1), now=after(5)),
        make(job(status, **spec), pod(0, "Succeeded"), pod(1, "Succeeded")),
    ):
        assert len(made.disband) == groups
        assert all(g["kind"] == "PodGroup" and g["metadata"]["name"] == "digits" for g in made.disband)
        assert not made.has_actions or made.delete or made.events, "it is no deed by itself"
