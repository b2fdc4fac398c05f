"""The data file of a dataset: which spellings are accepted, and which are refused with a clear message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from yolojob_trainer.data.dataset_config import describe
from yolojob_trainer.data.dataset_description import DatasetDescription, Split
from yolojob_trainer.data.job_dataset import link_boundary
from yolojob_trainer.errors import BadInput

from yolojob.api.spec import Dataset


def dataset(folder: Path, content: dict[str, Any], config: str = "data.yaml") -> Path:
    """Writes a data file, and folders `images/train` and `images/val` with one image each beside it."""
    path = folder / config
    for split in ("train", "val"):
        images = path.parent / "images" / split
        images.mkdir(parents=True, exist_ok=True)
        (images / "a.png").touch()
    path.write_text(yaml.safe_dump({"names": ["a", "b"], "train": "images/train", "val": "images/val"} | content))
    return folder


@pytest.mark.parametrize("test", ["../test/images", "", None, [], "gone"])
def test_describe_without_a_test_split_leaves_it_out(tmp_path: Path, test: Any) -> None:
    """As in most exports of Roboflow."""
    description = describe(dataset(tmp_path, {"test": test}), "data.yaml")
    assert description.splits == {
        "train": Split(folders=[tmp_path / "images" / "train"]),
        "val": Split(folders=[tmp_path / "images" / "val"]),
    }


@pytest.mark.parametrize("value", [None, "", [], "gone"])
def test_describe_without_the_split_for_validation_is_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(BadInput, match=r"spec.dataset: .*data.yaml: test: "):
        describe(dataset(tmp_path, {"test": value}), "data.yaml", "test")


def test_describe_with_another_split_for_validation_needs_no_val(tmp_path: Path) -> None:
    description = describe(dataset(tmp_path, {"val": "gone", "test": "images/val"}), "data.yaml", "test")
    assert set(description.splits) == {"train", "test"}
    written = yaml.safe_load(description.write(tmp_path / "out").read_text())
    assert written["test"] == [str(tmp_path / "images" / "val")]
    assert written["val"] == written["train"], "Ultralytics demands the key"


@pytest.mark.parametrize("config", ["nested/data.yaml", "data.yaml"])
@pytest.mark.parametrize("path", [None, ".", "/home/someone/else", "../datasets/set"])
def test_describe_resolves_splits_beside_the_data_file(tmp_path: Path, config: str, path: str | None) -> None:
    """Also if an archive wraps the dataset in a folder, and the job names only data.yaml."""
    extra = {} if path is None else {"path": path}
    (tmp_path / "nested").mkdir()
    folder = dataset(tmp_path, extra, "nested/data.yaml")
    description = describe(folder, config)
    assert description.splits["train"].folders == [tmp_path / "nested" / "images" / "train"]


def test_describe_resolves_splits_below_path(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    dataset(tmp_path / "set", {})
    (tmp_path / "data.yaml").write_text("path: set\nnames: [a]\ntrain: images/train\nval: [images/val]\n")
    assert describe(tmp_path, "data.yaml").splits["val"].folders == [tmp_path / "set" / "images" / "val"]


def test_describe_with_two_data_files_further_down_names_both(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        dataset(tmp_path / name, {})
    with pytest.raises(BadInput, match=r"name one: one/data.yaml, two/data.yaml"):
        describe(tmp_path, "data.yaml")


def test_describe_without_the_data_file_lists_those_that_exist(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    dataset(tmp_path, {}, "inner/coco.yaml")
    with pytest.raises(BadInput, match=r"spec.dataset.config: data.yaml: not in .*; there is inner/coco.yaml"):
        describe(tmp_path, "data.yaml")


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ({"names": {"0": "a", "1": "b"}}, {0: "a", 1: "b"}),
        ({"names": {0: "a", 1: 5}}, {0: "a", 1: "5"}),
        ({"nc": "2"}, {0: "a", 1: "b"}),
        ({"nc": 2.0}, {0: "a", 1: "b"}),
        ({"names": None, "nc": "2"}, {0: "class_0", 1: "class_1"}),
    ],
)
def test_describe_reads_numbers_that_are_written_as_text(
    tmp_path: Path, content: dict[str, Any], names: dict[int, str]
) -> None:
    assert describe(dataset(tmp_path, content), "data.yaml").names == names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"names": {1: "a", 2: "b"}}, r"names: class ids must be 0 to 1, each once"),
        ({"names": {0: "a", "0": "b"}}, r"names: class ids"),
        ({"names": {True: "a"}}, r"names: class ids"),
        ({"names": []}, r"names: must list the classes"),
        ({"nc": 3}, r"nc: 3, but names has 2 classes"),
        ({"nc": "many"}, r"nc: 'many', but names has 2 classes"),
        ({"nc": 1.5}, r"nc: 1.5, but names has 2 classes"),
        ({"channels": 4}, r"channels: 4: must be 1 or 3"),
        ({"channels": None}, r"channels: None: must be 1 or 3"),
        ({"kpt_shape": [4]}, r"kpt_shape: \[4\]: must be"),
        ({"kpt_shape": "4, 2"}, r"kpt_shape: '4, 2': must be"),
        ({"kpt_shape": [4, 5]}, r"kpt_shape"),
        ({"train": "../../etc"}, r"train: ../../etc leads out|train: ../../etc: .* does not exist"),
        ({"train": 5}, r"train: must be a path"),
        ({"train": "a\0b"}, r"train: .* contains a control character"),
        ({"train": "x" * 300}, r"train: .* is too long for a path"),
        ({"train": "x/" * 3000}, r"train: .* is too long for a path"),
        ({"train": ["images/train", None]}, r"train: must be a path"),
    ],
)
def test_describe_of_invalid_content_names_the_key(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        describe(dataset(tmp_path, content), "data.yaml")


def test_describe_of_a_pose_dataset_keeps_the_shape_of_its_rows(tmp_path: Path) -> None:
    description = describe(dataset(tmp_path, {"kpt_shape": ["4", 2]}), "data.yaml")
    assert yaml.safe_load(description.write(tmp_path / "out").read_text())["kpt_shape"] == [4, 2]


@pytest.mark.parametrize(
    "line", ["./images/val/a.png", "images/val/a.png", ".\\images\\val\\a.png", " images/val/a.png\t"]
)
def test_describe_of_an_image_list_returns_absolute_paths(tmp_path: Path, line: str) -> None:
    folder = dataset(tmp_path, {"val": "val.txt"})
    (folder / "val.txt").write_text(f"\ufeff{line}\r\n\n{folder}/images/train/a.png\n./images/val/missing.png")
    images = describe(folder, "data.yaml").splits["val"].images
    assert images == [folder / "images" / name for name in ("val/a.png", "train/a.png", "val/missing.png")]


@pytest.mark.parametrize(
    "line", ["/etc/secret.jpg", "../../etc/secret.jpg", "./a.jpg\x0c/etc/secret.jpg", "a\u2028/b.jpg"]
)
def test_describe_of_an_image_list_that_leads_out_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "in").mkdir()
    folder = dataset(tmp_path / "in", {"val": "val.txt"})
    (folder / "val.txt").write_text(line)
    with pytest.raises(BadInput, match=r"leads out of the dataset|control character"):
        describe(folder, "data.yaml")


@pytest.mark.parametrize("bounded", [True, False])
def test_describe_of_a_linked_folder_outside_the_boundary_is_refused(tmp_path: Path, bounded: bool) -> None:
    (tmp_path / "set").mkdir()
    folder = dataset(tmp_path / "set", {"train": "linked"})
    (tmp_path / "elsewhere").mkdir()
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    if bounded:
        with pytest.raises(BadInput, match=r"train: linked: is a link to .*elsewhere, which is outside"):
            describe(folder, "data.yaml", "val", folder)
    else:
        assert describe(folder, "data.yaml", "val", tmp_path).splits["train"].folders == [folder / "linked"]


@pytest.mark.parametrize(
    ("uri", "folder", "boundary"),
    [
        ("file:///data/set", "data/set", None),
        ("pvc://claim/set", "volumes/claim/set", "volumes/claim"),
        ("pvc://claim/set.zip", "cache/datasets/1234", "cache/datasets/1234"),
        ("s3://bucket/set", "cache/datasets/5678", "cache/datasets/5678"),
    ],
)
def test_link_boundary_is_the_claim_or_the_unpacked_dataset(
    tmp_path: Path, uri: str, folder: str, boundary: str | None
) -> None:
    dataset_spec = Dataset.model_validate({"uri": uri})
    (tmp_path / folder).mkdir(parents=True)
    found = link_boundary(dataset_spec, tmp_path / folder, tmp_path / "volumes")
    assert found == (None if boundary is None else (tmp_path / boundary).resolve())


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.integers(200, 5000).map("x".__mul__),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["names", "nc", "path", "train", "val", "channels", "kpt_shape"]), plain))
def test_describe_of_any_content_returns_a_description_or_bad_input(content: dict[str, Any]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        folder = dataset(Path(name), content)
        try:
            description = describe(folder, "data.yaml")
        except BadInput:
            return
        assert isinstance(description, DatasetDescription)
        root = folder.resolve()
        for split in description.splits.values():
            assert all(path.is_relative_to(root) for path in [*split.folders, *split.images])
