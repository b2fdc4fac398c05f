"""Datasets in shards: unpacked once per node, in any place, and refused if they are unsafe."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import minimal
from support.processes import Gangs
from support.stores import Bucket
from yolojob_trainer.data.job_dataset import NodeFolders, OpenDataset, locate, open_dataset
from yolojob_trainer.errors import BadInput

from yolojob.api.spec import Dataset, YoloTrainingJobSpec
from yolojob.api.task import Task

SHARDS = 3
"""For each split."""


def write_tar(path: Path, files: Mapping[str, bytes], mode: Any = "w") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def write_digits(source: Path, folder: Path, name: str = "{split}-{number:06}.tar") -> None:
    """Writes a dataset in shards, with labels beside the images, as WebDataset has them."""
    for split in ("train", "val"):
        images = sorted((source / "images" / split).iterdir())
        for number in range(SHARDS):
            files: dict[str, bytes] = {}
            for image in images[number::SHARDS]:
                label = source / "labels" / split / f"{image.stem}.txt"
                files |= {image.name: image.read_bytes(), label.name: label.read_bytes()}
            write_tar(folder / name.format(split=split, number=number), files)
    content = yaml.safe_load((source / "data.yaml").read_text())
    (folder / "data.yaml").write_text(yaml.safe_dump({**content, "train": "train", "val": "val"}))


def spec_of(uri: str) -> YoloTrainingJobSpec:
    return YoloTrainingJobSpec.model_validate(minimal(dataset={"uri": uri})["spec"])


def open_uri(uri: str, node: NodeFolders, task: Task = Task.DETECT) -> tuple[Path, OpenDataset]:
    """Stages a dataset; returns its folder and what was opened."""
    spec = spec_of(uri)
    folder = locate(spec.dataset, cache=node.cache, volumes=node.volumes, progress=lambda *_: None)
    return folder, open_dataset(spec, folder, task, node)


@pytest.fixture
def node(tmp_path: Path) -> NodeFolders:
    return NodeFolders(cache=tmp_path / "cache", volumes=tmp_path / "volumes")


def content(folder: Path, split: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / split).iterdir()}


@pytest.mark.torch
@pytest.mark.parametrize(
    "name",
    ["{split}-{number:06}.tar", "{split}/{number}.tar", "{split}_{number}.TAR", "{split}-0{number}-of-00128.tar"],
)
def test_shards_have_the_files_of_the_dataset(
    digits: dict[str, Path], tmp_path: Path, node: NodeFolders, name: str
) -> None:
    source = digits["digits"]
    write_digits(source, tmp_path / "shards", name)
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "shards").rglob("*"))
    folder, opened = open_uri(f"file://{tmp_path}/shards", node)
    for split in ("train", "val"):
        expected = [*(source / "images" / split).iterdir(), *(source / "labels" / split).iterdir()]
        assert content(folder, split) == {path.name: path.read_bytes() for path in expected}
        assert opened.description.splits[split].folders == [folder / split]
    assert len(opened.description.names) == 10
    assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "shards").rglob("*")) == before


@pytest.mark.torch
def test_shards_are_unpacked_again_only_after_a_change(
    digits: dict[str, Path], tmp_path: Path, node: NodeFolders
) -> None:
    write_digits(digits["digits"], tmp_path / "shards")
    uri = f"file://{tmp_path}/shards"
    first, _ = open_uri(uri, node)
    (first / "marker").touch()
    assert open_uri(uri, node)[0] == first
    write_tar(tmp_path / "shards" / "train-000009.tar", {"new.txt": b"0 .5 .5 .1 .1\n"})
    second, _ = open_uri(uri, node)
    assert second != first
    assert "new.txt" in content(second, "train")


@pytest.mark.torch
def test_shards_in_a_bucket_are_downloaded_and_unpacked_with_progress(
    digits: dict[str, Path], tmp_path: Path, node: NodeFolders, bucket: Bucket
) -> None:
    write_digits(digits["digits"], tmp_path / "shards")
    for path in (tmp_path / "shards").iterdir():
        bucket.put(f"set/{path.name}", path.read_bytes())
    seen: list[tuple[int, int | None]] = []
    dataset = Dataset.model_validate({"uri": f"s3://{bucket.name}/set"})
    folder = locate(dataset, cache=node.cache, volumes=node.volumes, progress=lambda *state: seen.append(state))
    assert len(content(folder, "train")) == 2 * len(list((digits["digits"] / "images" / "train").iterdir()))
    total = sum(path.stat().st_size for path in (tmp_path / "shards").glob("*.tar"))
    assert seen[-1] == (total, total)


def test_classification_in_shards_has_folders_of_classes(tmp_path: Path, node: NodeFolders) -> None:
    for split in ("train", "val"):
        for number in range(SHARDS):
            files = {f"{animal}/{number}.png": b"x" for animal in ("cat", "dog")}
            write_tar(tmp_path / "shards" / f"{split}-{number}.tar.gz", files, "w:gz")
    _, opened = open_uri(f"file://{tmp_path}/shards", node, Task.CLASSIFY)
    assert opened.description.names == {0: "cat", 1: "dog"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train-1.tar": {"a.txt": b""}, "train-2.tar": {"a.txt": b""}}, "train-.*'a.txt' exists twice"),
        ({"train-1.tar": {"../a.txt": b""}}, "train-1.tar: '../a.txt' leads out of the dataset"),
        ({"train-1.tar": {"/etc/a.txt": b""}}, "train-1.tar: '/etc/a.txt' leads out of the dataset"),
        ({"train-1.tar": None}, "train-1.tar: is neither a .zip nor a .tar"),
    ],
    ids=["twice", "parent", "absolute", "damaged"],
)
def test_unsafe_shard_is_refused_with_its_name(
    tmp_path: Path, node: NodeFolders, files: dict[str, dict[str, bytes] | None], message: str
) -> None:
    (tmp_path / "shards").mkdir()
    for name, members in files.items():
        if members is None:
            (tmp_path / "shards" / name).write_bytes(b"x" * 2000)
        else:
            write_tar(tmp_path / "shards" / name, members)
    with pytest.raises(BadInput, match=f"spec.dataset.uri: .*{message}"):
        open_uri(f"file://{tmp_path}/shards", node)
    assert not list((node.cache / "datasets").glob("shards-*"))


def test_shard_that_links_out_of_the_claim_is_refused(tmp_path: Path, node: NodeFolders) -> None:
    write_tar(tmp_path / "secret-1.tar", {"a.txt": b""})
    (node.volumes / "data" / "set").mkdir(parents=True)
    (node.volumes / "data" / "set" / "train-1.tar").symlink_to(tmp_path / "secret-1.tar")
    with pytest.raises(BadInput, match=r"train-1.tar: is a link that leads out of the volume"):
        open_uri("pvc://data/set", node)


def test_files_that_cannot_be_read_are_not_left_out(tmp_path: Path, node: NodeFolders) -> None:
    write_tar(tmp_path / "shards" / "train-1.tar", {"a.txt": b""})
    for name in ("loop", "train-2.tar"):
        link = tmp_path / "shards" / name
        link.symlink_to(name if name == "loop" else "nowhere")
        with pytest.raises(BadInput, match=f"{name}: cannot be read, or is a link that leads nowhere"):
            open_uri(f"file://{tmp_path}/shards", node)
        link.unlink()


def test_hidden_files_are_no_shards(tmp_path: Path, node: NodeFolders) -> None:
    write_tar(tmp_path / "shards" / "train-1.tar", {"a.txt": b""})
    for name in ("._train-1.tar", "..-0.tar", ".cache/b.jpg"):
        (tmp_path / "shards" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "shards" / name).write_bytes(b"x")
    dataset = Dataset.model_validate({"uri": f"file://{tmp_path}/shards"})
    folder = locate(dataset, cache=node.cache, volumes=node.volumes, progress=lambda *_: None)
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) == ["train", "train/a.txt"]


def test_shards_that_do_not_fit_leave_nothing(
    tmp_path: Path, node: NodeFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        write_tar(tmp_path / "shards" / f"train-{number}.tar", {f"{number}.txt": b"x" * 1000})
    monkeypatch.setattr("yolojob_trainer.data.staging.RESERVED_BYTES", 1 << 60)
    with pytest.raises(BadInput, match="may be used"):
        open_uri(f"file://{tmp_path}/shards", node)
    assert not [path for path in (node.cache / "datasets").rglob("*") if path.is_file() and path.stat().st_size]


@pytest.mark.parametrize("other", ["images/train/a.jpg", "a.png", "notes.zip", "a/b/c/d/e.jpg", "coco2017.tar"])
def test_dataset_with_other_files_is_used_as_it_is(tmp_path: Path, node: NodeFolders, other: str) -> None:
    write_tar(tmp_path / "set" / "train-1.tar", {"a.txt": b""})
    (tmp_path / "set" / other).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "set" / other).write_bytes(b"x")
    dataset = Dataset.model_validate({"uri": f"file://{tmp_path}/set"})
    folder = locate(dataset, cache=node.cache, volumes=node.volumes, progress=lambda *_: None)
    assert folder == tmp_path / "set"


def test_training_on_shards_visits_the_images_of_the_dataset(
    digits: dict[str, Path], tmp_path: Path, gangs: Gangs
) -> None:
    write_digits(digits["digits"], tmp_path / "shards")
    gang = gangs(2, replicas=2, train={"epochs": 1}, dataset={"uri": f"file://{tmp_path}/shards"})
    assert gang.wait() == [0, 0], gang.log()
    sharded = gang.samples()
    shutil.rmtree(gang.output)
    gang.remove_records()
    plain = gangs(2, replicas=2, train={"epochs": 1}, dataset={"uri": f"file://{digits['digits']}"})
    assert plain.wait() == [0, 0], plain.log()
    assert plain.samples() == sharded
