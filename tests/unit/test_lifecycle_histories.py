"""Whole histories of jobs, as their pods went through them: what the account, the counts and the gangs are at the end."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.plans import NOW, after, conditions, job, make, pod, reasons
from yolojob_operator.plan import completed_indexes
from yolojob_operator.plan.builder import Obstacle
from yolojob_operator.plan.lifecycle import Plan
from yolojob_operator.plan.node_facts import NodeFacts

from yolojob.api.status import JobPhase, Progress, Timing, YoloTrainingJobStatus
from yolojob.api.trainer_report import Report

QUOTA = Obstacle(reason="QuotaExceeded", message="exceeded quota: pods")
NOWHERE: dict[str, Any] = {"node": "", "scheduled": None, "started": None, "ready": False}
ELASTIC: dict[str, Any] = {"elastic": {"minReplicas": 1, "maxReplicas": 8}, "train": {"batch": 16}}


class History:
    """A job whose status is kept from plan to plan, as the API server keeps it."""

    def __init__(self, **spec: Any) -> None:
        self.spec, self.status = spec, None

    status: YoloTrainingJobStatus | None

    def at(self, seconds: float, *pods: Any, **observed: Any) -> Plan:
        made = make(job(self.status, **self.spec), *pods, now=after(seconds), **observed)
        self.status = YoloTrainingJobStatus.model_validate(
            json.loads(made.status.model_dump_json(by_alias=True, exclude_none=True))
        )
        return made

    @property
    def shown(self) -> YoloTrainingJobStatus:
        assert self.status is not None
        return self.status


def early(index: int, phase: str = "Running", begin: float = 0, **facts: Any) -> Any:
    """A pod that started at that second."""
    moment = after(begin)
    return pod(index, phase, **{"created": moment, "scheduled": moment, "started": moment, **facts})


def said(trained: float, carried: float = 0.0) -> Report:
    timing = Timing(validation_seconds=0, checkpoint_seconds=0, training_seconds={"forward": trained})
    return Report(progress=Progress(epoch=1, epochs=9), timing=timing, carried_seconds=carried)


def assert_balanced(of: YoloTrainingJobStatus) -> None:
    timing = of.timing
    assert timing is not None
    assert timing.updated_at is not None
    wall = (timing.updated_at - (NOW - timedelta(seconds=10))).total_seconds()  # since its creation
    assert sum(timing.parts.values()) == pytest.approx(wall, abs=1)


def test_what_a_worker_trained_on_its_way_out_is_not_told_twice() -> None:
    """Between two attempts it goes on and saves: that is in the checkpoint, and in the time of the restart."""
    story = History()
    story.at(0)
    story.at(1, early(0), early(1))
    going = {"deleted": after(90)}
    story.at(60, early(0), early(1, disruption="EvictionByEvictionAPI: m", **going), report=said(60))
    story.at(62, early(0, **going), early(1, **going))
    story.at(68)
    new = [early(n, begin=70, attempt=2) for n in range(2)]
    story.at(71, *new)
    story.at(140, *new, report=said(67 + 70, carried=67))
    assert_balanced(story.shown)


def test_a_job_that_goes_on_where_a_deleted_one_was_has_only_its_own_time() -> None:
    story = History()
    story.at(0)
    story.at(1, early(0), early(1))
    story.at(100, early(0), early(1), report=said(3600 + 95, carried=3600))
    assert_balanced(story.shown)
    assert story.shown.timing
    assert story.shown.timing.training_seconds["forward"] == pytest.approx(95)


def test_who_waits_in_vain_for_a_worker_that_a_quota_keeps_out_has_not_failed() -> None:
    story = History(runPolicy={"backoffLimit": 0})
    story.at(0)
    story.at(5, pod(0), obstacle=QUOTA)
    made = story.at(300, pod(0, "Failed", exit_code=76, finished=after(300)), obstacle=QUOTA)
    assert (made.status.restarts, made.status.disruptions) == (0, 1)
    assert made.status.history[0].reason == "QuotaExceeded"


def test_nor_is_another_who_waits_with_him_silent() -> None:
    story = History(workers={"replicas": 4}, train={"batch": 16})
    story.at(0)
    story.at(5, *(pod(n) for n in range(3)), obstacle=QUOTA)
    ended = pod(0, "Failed", exit_code=76, finished=after(300))
    made = story.at(310, ended, pod(1), pod(2), obstacle=QUOTA)
    assert made.status.history[0].reason == "QuotaExceeded"


def test_workers_that_save_after_their_attempt_are_paid_until_they_end() -> None:
    story = History(pricing={"perWorkerHour": 3600.0})
    story.at(0)
    story.at(1, early(0), early(1))
    going = {"deleted": after(80)}
    story.at(50, early(0, disruption="EvictionByEvictionAPI: m", **going), early(1))
    made = story.at(55, early(0, **going), early(1, **going))
    assert made.due
    assert made.due <= after(61), "who vanishes without a word is paid until shortly before"
    ended = [early(n, "Failed", finished=after(75), exit_code=143, **going) for n in range(2)]
    story.at(75, *ended)
    story.at(76)
    assert story.shown.cost
    assert story.shown.cost.so_far == pytest.approx(150)


def test_suspended_workers_that_vanish_are_paid_until_shortly_before() -> None:
    story = History(pricing={"perWorkerHour": 3600.0})
    story.at(0)
    story.at(1, early(0), early(1))
    story.spec = {**story.spec, "runPolicy": {"suspend": True}}
    story.at(50, early(0), early(1))
    moment = 51.0
    while moment < 80:
        made = story.at(moment, *(early(n, deleted=after(80)) for n in range(2)))
        assert made.due
        moment = max((made.due - NOW).total_seconds(), moment + 1)
    story.at(80)
    assert story.shown.cost
    assert story.shown.cost.so_far is not None
    assert 140 <= story.shown.cost.so_far <= 160


def test_a_worker_that_has_succeeded_may_go() -> None:
    """Its node is scaled down while the first worker still uploads."""
    story = History()
    story.at(0)
    story.at(1, early(0), early(1))
    story.at(100, early(0), early(1, "Succeeded", finished=after(100)))
    made = story.at(160, early(0))
    assert (made.status.phase, made.status.attempt, made.status.disruptions) == (JobPhase.RUNNING, 1, 0)
    assert not made.create
    assert made.status.workers.succeeded == 1
    story.at(200, early(0), report=said(190))
    assert story.shown.progress, "the others are still listened to"
    made = story.at(300, early(0, "Succeeded", finished=after(300)))
    assert made.status.phase == JobPhase.SUCCEEDED
    assert made.status.workers.succeeded == 2


def test_one_more_worker_than_succeeded_is_missing() -> None:
    story = History(workers={"replicas": 4}, train={"batch": 16})
    story.at(0)
    story.at(1, *(early(n) for n in range(4)))
    story.at(100, *(early(n) for n in range(3)), early(3, "Succeeded", finished=after(100)))
    made = story.at(160, early(0), early(1))
    assert made.status.attempt == 2
    assert made.status.workers.succeeded == 0, "of an attempt that is over nothing is left"


def test_nobody_is_created_once_the_training_is_done() -> None:
    story = History(workers={"replicas": 4}, train={"batch": 16})
    story.at(0)
    story.at(1, *(early(n) for n in range(4)))
    made = story.at(10, early(0, "Succeeded", finished=after(10)), early(2), early(3))
    assert not made.create
    assert conditions(made)["Scheduled"] == ("True", "Scheduled")


def test_a_template_of_which_no_larger_attempt_can_be_made_is_told() -> None:
    story = History(workers={"replicas": 1}, **ELASTIC)
    story.at(0)
    story.at(1, pod(0))
    story.spec["workers"] = {"replicas": 2, "template": {"spec": {"containers": ["trainer"]}}}
    made = story.at(40, pod(0))
    assert conditions(made)["Accepted"] == ("False", "TemplateInvalid")
    assert not made.delete, "what runs may end"


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_job_that_is_scaled_down_between_two_attempts_begins_small(replicas: int) -> None:
    story = History(workers={"replicas": 4}, **ELASTIC)
    story.at(0)
    gang = [pod(n) for n in range(4)]
    story.at(1, *gang)
    story.at(10, *gang[:3], pod(3, deleted=after(40), disruption="EvictionByEvictionAPI: m"))
    story.spec["workers"] = {"replicas": replicas}
    story.at(12, *(pod(n, deleted=after(40)) for n in range(4)))
    made = story.at(20)
    assert sum(item["kind"] == "Pod" for item in made.create) == replicas
    again = story.at(20.1, *(pod(n, "Pending", attempt=2, **NOWHERE) for n in range(replicas)))
    assert not again.delete
    assert not reasons(again)
    assert again.status.attempt == 2


def test_gpus_that_are_asked_for_while_it_trains_on_cpus_are_no_missing_gpus() -> None:
    nodes = {"node-0": NodeFacts(name="node-0", ready=True, devices={"nvidia.com/gpu": 8})}
    story = History()
    story.at(0, nodes=nodes)
    story.at(1, pod(0), pod(1), nodes=nodes)
    story.spec["workers"] = {"replicas": 2, "gpu": {"count": 1, "required": True}}
    assert conditions(story.at(10, pod(0), pod(1), nodes=nodes))["Accepted"] == ("True", "Accepted")
    story.spec["workers"] = {"replicas": 2, "gpu": {"count": 1, "required": False}}
    made = story.at(11, pod(0), pod(1), nodes=nodes)
    words = next(c.message for c in made.status.conditions if c.type == "Accepted")
    assert "no node has" not in words
    assert "the next attempt" in words


@pytest.mark.parametrize("policy", ["activeDeadlineSeconds", "preRunningDeadlineSeconds"])
def test_a_deadline_frees_what_the_job_holds_whatever_is_to_be_kept(policy: str) -> None:
    story = History(runPolicy={"cleanPodPolicy": "None", policy: 60})
    story.at(0)
    active = policy == "activeDeadlineSeconds"
    other = pod(1) if active else pod(1, "Pending", waiting="Unschedulable: 0/3", **NOWHERE)
    story.at(1, pod(0), other)
    made = story.at(61, pod(0), other)
    assert made.status.phase == JobPhase.FAILED
    assert {d.name for d in made.delete} == {"digits-worker-0", "digits-worker-1"}
    ended = [pod(0, "Failed", exit_code=143), pod(1, "Failed", exit_code=143)]
    assert not story.at(62, *ended).delete, "their logs stay"


def test_who_succeeded_is_remembered_one_by_one() -> None:
    """Two go as they succeed, one after the other."""
    story = History(workers={"replicas": 4}, train={"batch": 16})
    story.at(0)
    story.at(1, *(early(n) for n in range(4)))
    story.at(100, *(early(n) for n in range(3)), early(3, "Succeeded", finished=after(100)))
    story.at(110, *(early(n) for n in range(3)))
    story.at(120, early(0), early(1), early(2, "Succeeded", finished=after(120)))
    made = story.at(130, early(0), early(1))
    assert made.status.attempt == 1
    assert made.status.workers.completed_indexes == "2,3"


@given(st.sets(st.integers(0, 2000)), st.integers(0, 2001))
def test_indexes_are_read_as_they_were_written(some: set[int], size: int) -> None:
    assert completed_indexes.split(completed_indexes.join(some), size) == {n for n in some if n < size}


@pytest.mark.parametrize("text", ["-", "a", "1-", "5-2", "1-99999999999", ",,", "1;2", "²"])
def test_indexes_that_nobody_wrote_do_no_harm(text: str) -> None:
    assert completed_indexes.split(text, 4) <= {0, 1, 2, 3}


def test_a_training_that_is_done_ends_though_its_first_pod_went() -> None:
    """The operator was away in the moment between."""
    story = History()
    story.at(0)
    story.at(1, early(0), early(1))
    story.at(100, early(0, "Succeeded", finished=after(100)), early(1))
    made = story.at(103, early(1))
    assert made.status.phase == JobPhase.SUCCEEDED
    assert made.status.attempt == 1
