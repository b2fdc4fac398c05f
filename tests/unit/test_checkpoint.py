"""Checkpoints are written completely or not at all, and are validated before they are used."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import pytest

if TYPE_CHECKING:
    from yolojob_trainer.checkpoint.store import CheckpointStore

pytestmark = pytest.mark.torch


def store(tmp_path: Path, keep: int = 2) -> CheckpointStore:
    from yolojob_trainer.checkpoint.store import CheckpointStore

    return CheckpointStore(tmp_path / "checkpoints", keep)


def test_store_keeps_the_newest_checkpoints_and_finds_the_newest(tmp_path: Path) -> None:
    import torch
    from yolojob_trainer.checkpoint.store import decode

    checkpoints = store(tmp_path)
    for epoch in range(4):
        checkpoints.save({"epoch": epoch, "weights": torch.full((3,), float(epoch))}, epoch=epoch, step=0)
    assert len(checkpoints.paths()) == 2
    data, faults = checkpoints.newest()
    assert data is not None
    assert decode(data)["epoch"] == 3
    assert faults == []


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "text"])
def test_newest_with_a_corrupt_checkpoint_returns_the_one_before(tmp_path: Path, damage: str) -> None:
    import torch
    from yolojob_trainer.checkpoint.store import decode

    checkpoints = store(tmp_path)
    checkpoints.save({"epoch": 1}, epoch=1, step=0)
    newest = checkpoints.save({"epoch": 2, "weights": torch.ones(1000)}, epoch=2, step=0)
    content = bytearray(newest.read_bytes())
    if damage == "truncate":
        del content[len(content) // 2 :]
    elif damage == "flip":
        content[len(content) // 2] ^= 0xFF
    else:
        content = bytearray(b"" if damage == "empty" else b"no checkpoint")
    newest.write_bytes(content)
    data, faults = checkpoints.newest()
    assert data is not None
    assert decode(data)["epoch"] == 1
    assert newest.name in faults[0]


def test_newest_of_an_empty_store_is_none(tmp_path: Path) -> None:
    assert store(tmp_path).newest() == (None, [])


def test_decode_of_a_checkpoint_with_code_does_not_run_it(tmp_path: Path) -> None:
    import torch
    from yolojob_trainer.checkpoint.store import decode

    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "owned"),)

    path = tmp_path / "evil.pt"
    torch.save({"format": 1, "evil": Evil()}, path)
    with pytest.raises(ValueError, match=r".+"):
        decode(path.read_bytes())
    with pytest.raises(ValueError, match=r".+"):
        decode(pickle.dumps(Evil()))
    assert not (tmp_path / "owned").exists()


def test_decode_of_another_version_is_refused(tmp_path: Path) -> None:
    import torch
    from yolojob_trainer.checkpoint.store import decode

    path = tmp_path / "old.pt"
    torch.save({"format": 0}, path)
    with pytest.raises(ValueError, match="not a checkpoint of this version"):
        decode(path.read_bytes())
    assert zipfile.is_zipfile(path)


def test_write_atomically_that_fails_leaves_only_the_old_file(tmp_path: Path) -> None:
    from yolojob_trainer.checkpoint.store import write_atomically

    path = tmp_path / "last.pt"
    write_atomically(path, lambda file: file.write(b"old"))

    def fail(file: BinaryIO) -> None:
        file.write(b"half of the n")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]
