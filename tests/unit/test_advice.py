"""Advice on a run: what to change first, from where its time went."""

from __future__ import annotations

from support.bench_data import job

from yolojob.api.time_parts import TimePart
from yolojob.reports import advice


def test_suggest_for_balanced_run_is_empty() -> None:
    parts = {TimePart.FORWARD: 50.0, TimePart.BACKWARD: 45.0, TimePart.DATA_WAIT: 5.0}
    assert advice.suggest(parts, {0: 0.1, 1: 0.101}, None) == []


def test_suggest_puts_the_largest_saving_first() -> None:
    parts = {TimePart.FORWARD: 10.0, TimePart.DATA_WAIT: 30.0, TimePart.VALIDATION: 60.0}
    suggestions = advice.suggest(parts, {}, job().spec)
    assert [suggestion.change.partition(":")[0] for suggestion in suggestions] == ["train.val_period", "cache"]


def test_suggest_with_cached_images_names_the_loader_processes() -> None:
    spec = job(train={"cache": "ram", "epochs": 5}).spec
    suggestions = advice.suggest({TimePart.FORWARD: 10.0, TimePart.DATA_WAIT: 30.0}, {}, spec)
    assert "loader processes" in suggestions[0].change
