"""Every method of Ultralytics that this package overrides, held against the original on the same inputs.

What upstream's method does beside its main purpose is easily lost in an override. An upgrade that changes one of the
originals fails `test_overridden_methods_are_known`: read the difference before the table is updated.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import itertools
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from yolojob_trainer.data.scan import summarize

pytestmark = pytest.mark.torch

OVERRIDES = {
    "BaseDataset.__getitem__": "936b5c8a",
    "BaseDataset.cache_images": "becfffb9",
    "BaseDataset.check_cache_ram": "845e05d3",
    "BaseDataset.get_image_and_label": "ed0c3955",
    "BaseDataset.get_img_files": "baca2eb4",
    "BaseDataset.load_image": "088d1a20",
    "BaseDataset.set_rectangle": "f771615e",
    "BaseDataset.update_labels": "d6efeab1",
    "BaseTrainer._build_train_pipeline": "07afcc06",
    "BaseTrainer._setup_train": "aecd0c11",
    "BaseTrainer.get_dataset": "611e9c8a",
    "BaseTrainer.optimizer_step": "bec16cbc",
    "BaseTrainer.setup_model": "33c98eec",
    "BaseTrainer.train": "b7f76d34",
    "ClassificationDataset.__getitem__": "007e08a8",
    "ClassificationDataset.verify_images": "2cd145ae",
    "ClassificationTrainer.build_dataset": "4d46eb05",
    "ClassificationTrainer.get_validator": "ad851cd1",
    "ClassificationTrainer.setup_model": "a99c0b3d",
    "ClassificationValidator.gather_stats": "586ce5e0",
    "DepthDataset.build_transforms": "64bf9459",
    "DepthDataset.get_image_and_label": "1c3bad7f",
    "DepthDataset.get_label_files": "d7577b12",
    "DepthDataset.verify_labels": "340fb732",
    "DepthTrainer.get_validator": "43960b9b",
    "DepthValidator.gather_stats": "63adcf0c",
    "DetectionTrainer._build_train_pipeline": "a86453b5",
    "DetectionTrainer.build_dataset": "2d004adb",
    "DetectionTrainer.get_validator": "f470ff2f",
    "DetectionValidator.gather_stats": "1ef60387",
    "Format._format_img": "9f56f5f6",
    "Format.apply_image": "a312558a",
    "Mosaic.apply_image": "14d7e32e",
    "OBBTrainer.get_validator": "9a4115c8",
    "PolygonSemanticDataset.get_label_files": "3143c3a3",
    "PoseTrainer.get_dataset": "54ccc881",
    "PoseTrainer.get_validator": "76353f52",
    "PoseValidator.gather_stats": "a181e6d6",
    "RandomFlip.apply_image": "0cdfdf57",
    "RandomHSV.apply_image": "052261e4",
    "RandomPerspective.apply_image": "1fc062da",
    "SegmentationTrainer.get_validator": "d486a6f8",
    "SegmentationValidator.gather_stats": "9ecf4eee",
    "SemanticDataset.get_image_and_label": "ae07637d",
    "SemanticDataset.get_label_files": "ab56fb07",
    "SemanticDataset.load_image": "b8af7292",
    "SemanticDataset.update_labels": "97e13d61",
    "SemanticDataset.verify_labels": "0c0ef683",
    "SemanticSegmentationTrainer.get_dataset": "a716781d",
    "SemanticSegmentationTrainer.get_validator": "01cc5ae8",
    "SemanticSegmentationValidator.gather_stats": "697bf0b7",
    "YOLODataset._load_or_scan_cache": "f36510a1",
    "YOLODataset.build_transforms": "be130919",
    "YOLODataset.get_label_files": "3143c3a3",
}
"""First digits of a hash of the source of each method that is overridden."""


def write_dataset(folder: Path, images: int = 6) -> dict[str, Any]:
    """Writes images with one polygon or box each; returns the data as `check_det_dataset` would."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for i in range(images):
            pixels = generator.integers(0, 255, (40 + i, 48, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "images" / split / f"{i}.png")
            (folder / "labels" / split / f"{i}.txt").write_text(f"{i % 2} 0.5 0.5 0.25 0.{i + 1}\n")
    return {
        "train": [str(folder / "images" / "train")],
        "val": [str(folder / "images" / "val")],
        "names": {0: "a", 1: "b"},
        "nc": 2,
        "channels": 3,
    }


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Any]:
    return write_dataset(tmp_path / "set")


def settings(**overrides: Any) -> Any:
    from ultralytics.cfg import get_cfg

    return get_cfg(overrides={"imgsz": 64, "task": "detect", **overrides})


def both(data: dict[str, Any], cache: Path, mode: str = "train", **overrides: Any) -> tuple[Any, Any]:
    """Returns (upstream's dataset, ours) of the same settings."""
    from ultralytics.data.build import build_yolo_dataset
    from yolojob_trainer.data.dataset import NodeDataset

    args = settings(**overrides)
    upstream = build_yolo_dataset(args, data[mode], 4, data, mode=mode, rect=mode == "val", stride=32)
    ours = NodeDataset(
        label_folder=cache,
        boundary=None,
        img_path=data[mode],
        imgsz=args.imgsz,
        batch_size=4,
        augment=mode == "train",
        hyp=args,
        rect=mode == "val",
        single_cls=args.single_cls or False,
        stride=32,
        pad=0.0 if mode == "train" else 0.5,
        prefix=f"{mode}: ",
        task="detect",
        classes=args.classes,
        data=data,
        fraction=args.fraction if mode == "train" else 1.0,
    )
    return upstream, ours


def parts(transforms: Any) -> Any:
    """Returns all transforms, in order, as plain data. Ours are not nested."""
    from yolojob_trainer.data import recipe

    return [described(transform) for transform in recipe.flatten(transforms)]


def described(transform: Any, *, ignored: tuple[str, ...] = ("dataset", "buffer_enabled")) -> Any:
    """Returns a transform and all that it contains as plain data."""
    from yolojob_trainer.data import recipe

    name = type(transform).__name__
    if isinstance(transform, bool | int | float | str | None):
        return transform
    if isinstance(transform, list | tuple):
        return [described(child) for child in transform]
    recorded = next((kind.__name__ for kind, recorder in recipe.RECORDERS.items() if type(transform) is recorder), None)
    if not recorded and not type(transform).__module__.startswith("ultralytics"):
        return name
    return recorded or name, {
        key: described(value) for key, value in sorted(vars(transform).items()) if key not in ignored
    }


@pytest.mark.parametrize("mode", ["train", "val"])
def test_transforms_equal_those_of_upstream(data: dict[str, Any], tmp_path: Path, mode: str) -> None:
    upstream, ours = both(data, tmp_path / "cache", mode)
    assert parts(ours.transforms) == parts(upstream.transforms)


def test_transforms_after_close_mosaic_equal_those_of_upstream(data: dict[str, Any], tmp_path: Path) -> None:
    """Only mosaic, mixup, cutmix and copy_paste end; flips, colours and geometry go on."""
    upstream, ours = both(data, tmp_path / "cache", mixup=0.5, hsv_h=0.3, degrees=10.0, bgr=0.5)
    before = parts(ours.transforms)
    upstream.close_mosaic(settings(hsv_h=0.3, degrees=10.0, bgr=0.5))
    ours.close_mosaic(settings(hsv_h=0.3, degrees=10.0, bgr=0.5))
    assert parts(ours.transforms) == parts(upstream.transforms) != before
    assert "RandomPerspective" in str(parts(ours.transforms))
    assert ours.augment is False


def labels_of(dataset: Any) -> Any:
    """Returns the labels of a dataset as plain data."""
    return [{key: plain(value) for key, value in label.items()} for label in dataset.labels]


def plain(value: Any) -> Any:
    if isinstance(value, list):
        return [plain(child) for child in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("overrides", [{}, {"single_cls": True}, {"classes": [1]}, {"fraction": 0.5}])
@pytest.mark.parametrize("kind", ["boxes", "polygons", "pose"])
def test_labels_equal_those_of_upstream_scanned_and_cached(
    data: dict[str, Any], tmp_path: Path, kind: str, overrides: dict[str, Any]
) -> None:
    if kind != "boxes":
        row = "0 0.1 0.1 0.9 0.1 0.5 0.9\n1 0.2 0.2 0.4 0.2 0.4 0.4 0.2 0.4\n"
        if kind == "pose":
            data["kpt_shape"], row = [2, 2], "1 0.5 0.5 0.2 0.3 0.4 0.4 0.6 0.6\n"
        for path in Path(data["train"][0].replace("images", "labels")).glob("*.txt"):
            path.write_text(row)
    upstream, scanned = both(data, tmp_path / "cache", **overrides)
    _, cached = both(data, tmp_path / "cache", **overrides)
    assert labels_of(scanned) == labels_of(cached) == labels_of(upstream)
    assert cached.scan == scanned.scan
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".npz"]


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("content", ["pickle", "npy", "npz with objects", "garbage", "other files"])
def test_label_cache_of_somebody_else_is_scanned_again(data: dict[str, Any], tmp_path: Path, content: str) -> None:
    _, first = both(data, tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    owned = tmp_path / "owned"
    if content == "other files":
        arrays = dict(np.load(path))
        arrays["head"] = np.frombuffer(arrays["head"].tobytes().replace(b"0.png", b"../x"), np.uint8)
        np.savez(path.open("wb"), **arrays)
    elif content == "npz with objects":
        np.savez(path.open("wb"), head=np.array([Evil(owned)], dtype=object))
    elif content == "npy":
        np.save(path.open("wb"), np.array([Evil(owned)], dtype=object), allow_pickle=True)
    else:
        path.write_bytes(pickle.dumps(Evil(owned)) if content == "pickle" else b"garbage")
    _, again = both(data, tmp_path / "cache")
    assert labels_of(again) == labels_of(first)
    assert not owned.exists()


def test_pickled_label_cache_in_the_dataset_is_not_read(data: dict[str, Any], tmp_path: Path) -> None:
    owned = tmp_path / "owned"
    trap = Path(data["train"][0]).parent.parent / "labels" / "train.cache"
    np.save(trap.open("wb"), np.array({"evil": Evil(owned)}, dtype=object), allow_pickle=True)
    both(data, tmp_path / "cache")
    assert not owned.exists()


def test_settings_of_the_dataset_equal_those_of_upstream(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`TrainerData.build_dataset` passes what upstream's `build_yolo_dataset` passes."""
    from ultralytics.data import build
    from yolojob_trainer.tasks.vision_task import VISION_TASKS
    from yolojob_trainer.training import trainer_data

    from yolojob.api.task import Task

    passed: list[dict[str, Any]] = []

    def record(**kwargs: Any) -> Any:
        passed.append(kwargs)
        raise ValueError("recorded")

    monkeypatch.setattr(build, "YOLODataset", record)
    task = dataclasses.replace(VISION_TASKS[Task.DETECT], dataset=record)
    args = settings(single_cls=True, classes=[0], fraction=0.5, cache="disk")
    for mode in ("train", "val"):
        passed.clear()
        with pytest.raises(ValueError, match="recorded"):
            build.build_yolo_dataset(args, "images", 4, {"names": {}}, mode=mode, rect=mode == "val", stride=32)
        with pytest.raises(Exception, match="recorded"):
            trainer_data.TrainerData.build_dataset(trainer(args, tmp_path, task), "images", mode, 4)
        upstream, ours = passed
        added = {"label_folder", "boundary"}
        assert {key: value for key, value in ours.items() if key not in {*added, "prefix"}} == {
            key: value for key, value in upstream.items() if key != "prefix"
        }
        assert set(ours) - set(upstream) == added


def trainer(args: Any, tmp_path: Path, task: Any) -> Any:
    """Returns what `build_dataset` needs of a trainer."""
    import torch
    from yolojob_trainer.distributed.world import World
    from yolojob_trainer.training.setup import TrainerSetup

    self = TrainerSetup.__new__(TrainerSetup)
    self.model = torch.nn.Identity()
    self.model.stride = torch.tensor([32.0])
    self.args, self.data, self.task = args, {"names": {}}, task
    self.world = World(
        rank=0, world_size=1, local_rank=0, local_world_size=1, device=torch.device("cpu"), on_lost_peer=print
    )
    self._label_cache, self._data_boundary = tmp_path, None
    return self


def overridden() -> Iterator[tuple[str, Any]]:
    """Yields each method of Ultralytics that a class of the trainer overrides: (its name, the original)."""
    from yolojob_trainer.bench import bench  # noqa: F401 - imports all modules that define such classes
    from yolojob_trainer.data import recipe
    from yolojob_trainer.data.dataset import NodeDataset
    from yolojob_trainer.data.image_folders import ImageFolders
    from yolojob_trainer.data.pixel_labels import DepthImages, MaskImages, PolygonMaskImages
    from yolojob_trainer.tasks.vision_task import VISION_TASKS
    from yolojob_trainer.training.trainer import trainer_class

    datasets = (NodeDataset, ImageFolders, MaskImages, PolygonMaskImages, DepthImages)
    tasks = [(trainer_class(name), task.validator) for name, task in VISION_TASKS.items()]
    for cls in (*datasets, *itertools.chain(*tasks), *recipe.RECORDERS.values()):
        own = [base for base in cls.__mro__ if base.__module__.startswith("yolojob_trainer")]
        upstream = [base for base in cls.__mro__ if base.__module__.startswith("ultralytics")]
        for name in {name for base in own for name, value in vars(base).items() if callable(value)}:
            original = next((base for base in upstream if name in vars(base)), None)
            if original is not None and name != "__init__":
                yield f"{original.__name__}.{name}", vars(original)[name]


def test_overridden_methods_are_known() -> None:
    found = {name: hashlib.sha256(inspect.getsource(method).encode()).hexdigest()[:8] for name, method in overridden()}
    table = "\n".join(f'    "{name}": "{digest}",' for name, digest in sorted(found.items()))
    assert found == OVERRIDES, f"read what has changed in these methods, then set OVERRIDES to:\n{table}"


def test_ultralytics_never_uses_the_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import socket

    from ultralytics.utils import checks, downloads
    from yolojob_trainer.model import resolve  # noqa: F401 - forbids it

    def connect(*args: Any) -> Any:
        raise AssertionError(f"connects to {args}")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    assert downloads.is_url("https://example.com/x.pt")
    assert not downloads.is_url("https://example.com/x.pt", check=True)
    checks.check_font("Arial.ttf")
    with pytest.raises(ConnectionError, match="must not use the network"):
        downloads.safe_download("https://example.com/x.pt", dir=tmp_path)
    with pytest.raises(ConnectionError, match="must not use the network"):
        checks.check_file("https://example.com/x.yaml")
    with pytest.raises(ConnectionError, match="must not use the network"):
        downloads.attempt_download_asset("yolo11m.pt")


@pytest.mark.parametrize("attack", ["distill", "foreign"])
def test_weights_that_name_other_classes_are_refused(tmp_path: Path, attack: str) -> None:
    import torch
    from ultralytics.nn.distill_model import DistillationModel
    from yolojob_trainer.errors import BadInput
    from yolojob_trainer.model.resolve import resolve

    from yolojob.api.spec import ModelRef

    class Trap:
        def __reduce__(self) -> Any:
            if attack == "distill":
                return DistillationModel, ("http://127.0.0.1:9/x.pt", None)
            return Path.touch, (tmp_path / "owned",)

    torch.save({"model": Trap()}, tmp_path / "x.pt")
    model = ModelRef.model_validate({"name": "x.pt", "weights": {"uri": f"file://{tmp_path}/x.pt"}})
    with pytest.raises(BadInput, match=r"spec.model.weights: .*x.pt needs .*, which weights of YOLO do not"):
        resolve(model, volumes=tmp_path, cache=tmp_path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("yoloe-11-seg.yaml", "its last module is YOLOESegment, but only networks that end with one of"),
        ("rtdetr-l.yaml", "RTDETRDecoder"),
        ("yolo11m-cars.pt", "publishes no weights of this name; similar names: yolo11m.*set spec.model.weights.uri"),
        ("yolo99n.yaml", "no architecture of this name; similar names: "),
    ],
)
def test_model_that_is_not_trained_is_refused_before_the_training(tmp_path: Path, name: str, message: str) -> None:
    from yolojob_trainer.errors import BadInput
    from yolojob_trainer.model.resolve import resolve

    from yolojob.api.spec import ModelRef

    with pytest.raises(BadInput, match=f"(?s)spec.model.name: {name}: .*{message}"):
        resolve(ModelRef(name=name), volumes=tmp_path, cache=tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": 5},
        {"backbone": [[1]]},
        {"backbone": [[-1, 1, 5, []]]},
        {"head": "x"},
        {"scales": 5},
        {"scales": [1]},
    ],
    ids=str,
)
def test_network_description_of_another_shape_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    import yaml
    from ultralytics.nn.tasks import yaml_model_load
    from yolojob_trainer.errors import BadInput
    from yolojob_trainer.model.resolve import resolve

    from yolojob.api.spec import ModelRef

    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**yaml_model_load("yolo11n.yaml"), **change}))
    model = ModelRef.model_validate({"name": "mine.yaml", "weights": {"uri": f"file://{tmp_path}"}})
    with pytest.raises(BadInput, match=r"spec.model.name: mine.yaml: "):
        resolve(model, volumes=tmp_path, cache=tmp_path)


def test_weights_that_are_no_network_of_yolo_are_refused(tmp_path: Path) -> None:
    import torch
    from yolojob_trainer.errors import BadInput
    from yolojob_trainer.model.resolve import resolve

    from yolojob.api.spec import ModelRef

    torch.save({"model": torch.nn.Linear(1, 1)}, tmp_path / "x.pt")
    model = ModelRef.model_validate({"name": "x.pt", "weights": {"uri": f"file://{tmp_path}/x.pt"}})
    with pytest.raises(BadInput, match=r"spec.model.weights: .*x.pt "):
        resolve(model, volumes=tmp_path, cache=tmp_path)


def test_messages_of_a_scan_are_grouped_by_reason() -> None:
    ignored = "ignoring corrupt image/label"
    messages = [f"/d/{i}.jpg: {ignored}: non-normalized or out of bounds coordinates [{i}.5 {i}.7]" for i in range(300)]
    messages.append(f"/d/x.jpg: {ignored}: cannot identify image file")
    text = summarize(messages)
    assert "and 297 more like it" in text
    assert "shares of the image, from 0 to 1, not pixels" in text
    assert "/d/x.jpg: cannot identify image file" in text
    assert len(text) < 600
