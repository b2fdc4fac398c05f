"""Completes the record of an attempt from its pods, where the operator that created them did not write it. Pure."""

from __future__ import annotations

from yolojob_operator.plan.builder import PlanBuilder


def adopt_pods(builder: PlanBuilder) -> None:
    """Record what the pods show and the status does not."""
    _adopt_first_attempt(builder)
    _adopt_image(builder)


def _adopt_first_attempt(builder: PlanBuilder) -> None:
    """Record the first attempt if its pods were created before any status was written."""
    pods = [p for p in builder.observed.pods if p.attempt == 1]
    if builder.status.attempt == 0 and pods:
        builder.next_attempt(max(p.workers for p in pods) or builder.job.spec.workers.replicas)
        assert builder.record is not None
        builder.record.start_time = min((p.created for p in pods if p.created), default=builder.now)
        builder.status.start_time = builder.record.start_time


def _adopt_image(builder: PlanBuilder) -> None:
    """Record image and specification, which are in no status before the first write, or of an older operator."""
    record, current = builder.record, builder.current
    if record is None or record.image is not None or not current:
        return
    builder.record_specification(next((p.image for p in current if p.image), None))
    if any(p.generation not in (0, builder.job.metadata.generation) for p in current):
        record.spec_digest = None
