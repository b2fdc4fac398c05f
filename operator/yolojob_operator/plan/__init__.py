"""Decides what a job needs: `plan(job, observed, now, defaults)` returns a `Plan`. Pure: no I/O, no clock."""

from yolojob_operator.plan.lifecycle import Plan, plan

__all__ = ["Plan", "plan"]
