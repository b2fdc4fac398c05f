"""Measurements, bench records and estimators for tests of predictions."""

from __future__ import annotations

from typing import Any

from support import minimal
from yolojob.api.job import YoloTrainingJob
from yolojob.api.measurement import (
    DataFacts,
    Energy,
    Host,
    Link,
    Measurement,
    MicrobatchPass,
    ModelProfile,
    Rates,
    Steps,
)
from yolojob.catalogue import machines
from yolojob.estimation.assumptions import Assumptions
from yolojob.estimation.bench_records import Record
from yolojob.estimation.estimator import Estimator

MODEL_PROFILE = ModelProfile(parameters=500_000, gflops=1.0, activation_bytes=50 << 20, fixed_bytes=10 << 20)
DATA = DataFacts(images=400, val_images=100, bytes=1 << 30)
PLAIN_STEP = {"data_wait": 0.01, "h2d": 0.001, "forward": 0.03, "loss": 0.004, "backward": 0.05, "other": 0.005}


def job(**spec: Any) -> YoloTrainingJob:
    """Returns a job of 20 epochs with batch 16, and other fields of the spec as given."""
    return YoloTrainingJob.model_validate(minimal(**{"train": {"epochs": 20, "batch": 16, "nbs": 16}, **spec}))


def measurement(**facts: Any) -> Measurement:
    """Returns a bench of one worker with two CPUs: 0.1 s per step, 0.12 s with mosaic. `facts` replace its fields."""
    base: dict[str, Any] = {
        "made_at": "2026-01-01T00:00:00Z",
        "took_seconds": 40.0,
        "fingerprint": "f",
        "workers": 1,
        "world_size": 1,
        "device": "CPU, 2 threads",
        "precision": "fp32",
        "host": Host(cpu="x", cores=2, memory=1 << 34, system="Linux", python="3", torch="2", ultralytics="8"),
        "model_profile": MODEL_PROFILE,
        "data": DATA,
        "startup_seconds": 3.0,
        "rendezvous_seconds": 0.0,
        "staging_seconds": 2.0,
        "cached_staging_seconds": 0.0,
        "steps": [
            Steps(with_mosaic=True, count=100, seconds={**PLAIN_STEP, "data_wait": 0.03}, deviation=0.01),
            Steps(with_mosaic=False, count=100, seconds=PLAIN_STEP, deviation=0.01),
        ],
        "update_seconds": 0.01,
        "microbatch_passes": [
            MicrobatchPass(images=16, seconds=0.084),
            MicrobatchPass(images=8, seconds=0.048, shared_seconds=0.072),
        ],
        "validation_seconds": 0.5,
        "validation_max_seconds": 0.6,
        "checkpoint_seconds": 0.1,
        "epoch_seconds": 0.02,
        "link": Link(between="processes", latency_seconds=1e-4, bytes_per_second=1e9),
        "rates": Rates(samples_per_core=500.0),
    }
    return Measurement(**{**base, **facts})


def record(target: str = "local", **facts: Any) -> Record:
    """Returns a bench record of a target; `facts` are fields of the record or of its measurement."""
    record_fields = {
        name: facts.pop(name) for name in ("waits", "per_worker_hour", "currency", "price_source") if name in facts
    }
    return Record(target=target, measurement=measurement(**facts), **record_fields)


def estimator(*records: Record, assumed: dict[str, Any] | None = None, **spec: Any) -> Estimator:
    """Returns an estimator of `job(**spec)` with the built-in catalogue.

    Args:
        records: bench records that it may use.
        assumed: assumptions that differ from the defaults, by their names in a file.
        spec: fields of the job's spec.
    """
    return Estimator(
        spec=job(**spec).spec,
        model_profile=MODEL_PROFILE,
        data=DATA,
        catalogue=machines.builtin(),
        assumptions=Assumptions.model_validate(assumed or {}),
        records=list(records),
    )


POWER = Energy(watts=100.0, source="rapl")
