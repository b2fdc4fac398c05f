"""The fingerprint of a job: equal for jobs of the same speed."""

from __future__ import annotations

from support.bench_data import job

from yolojob.api.fingerprint import job_fingerprint


def test_job_fingerprint_depends_only_on_what_changes_the_speed() -> None:
    base = {"epochs": 20, "batch": 16}
    same_speed = [{**base, "epochs": 99}, {**base, "seed": 7}, {**base, "lr0": 0.1}]
    other_speed = [{**base, "imgsz": 320}, {**base, "batch": 32}, {**base, "mosaic": 0.0}, {**base, "amp": "bf16"}]
    fingerprint = job_fingerprint(job(train=base).spec)
    assert {job_fingerprint(job(train=train).spec) for train in same_speed} == {fingerprint}
    assert fingerprint not in {job_fingerprint(job(train=train).spec) for train in other_speed}
    assert job_fingerprint(job(train=base, workers={"replicas": 4}).spec) == fingerprint
