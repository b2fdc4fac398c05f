"""A run overwrites neither results of somebody else nor those of a run that is active."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from yolojob_trainer.checkpoint import run_ownership
from yolojob_trainer.checkpoint.run_ownership import FolderLock, check_no_foreign_results, foreign_results
from yolojob_trainer.errors import BadInput


@pytest.mark.parametrize(
    ("names", "foreign"),
    [
        ([], []),
        (["notes.txt", "trace/rank-0.jsonl"], []),
        (["weights/best.pt", "weights/last.pt", "results.csv", "args.yaml"], 3),
        (["weights/best.pt", "checkpoints/checkpoint-00001-0000000.pt"], []),
        (["results.csv", "checkpoints"], ["results.csv"]),
        (["args.yaml"], []),
        ([".yolojob.lock", "args.yaml", "weights/last.pt", "results.csv"], []),
        ([".yolojob", "weights/last.pt", "results.csv"], []),
    ],
)
def test_foreign_results_are_those_without_checkpoints_of_a_run(names: list[str], foreign: list[str] | int) -> None:
    found = foreign_results(names)
    assert len(found) == foreign if isinstance(foreign, int) else found == foreign


def test_folder_of_a_stock_run_is_refused_with_a_way_out() -> None:
    with pytest.raises(BadInput, match=r"/runs/train holds results .*weights/best.pt.*weights.uri"):
        check_no_foreign_results(["weights/best.pt"], "/runs/train")


def _hold(folder: Path, pipe: Connection) -> None:
    lock = FolderLock(folder, "team/first", print)
    pipe.send("locked")
    pipe.recv()
    lock.release()


@pytest.mark.processes
def test_folder_of_an_active_run_is_refused_until_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_ownership, "LOCK_TIMEOUT_SECONDS", 0.0)
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    holder = context.Process(target=_hold, args=(tmp_path, there))
    holder.start()
    assert here.recv() == "locked"
    with pytest.raises(BadInput, match=r"is in use by team/first: choose another spec.storage.uri"):
        FolderLock(tmp_path, "team/second", print)
    warnings: list[str] = []
    FolderLock(tmp_path, "team/first", warnings.append).release()
    assert "an earlier attempt of this job" in warnings[0], "a lost node must not keep its job from going on"
    holder.kill()
    holder.join()
    FolderLock(tmp_path, "team/second", print).release()
