"""Brings the dataset of a job to this node, converts it if it has another format, and describes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from yolojob.api import uri as uris
from yolojob.api.reasons import Reason
from yolojob.api.spec import Dataset, YoloTrainingJobSpec
from yolojob.api.task import Task
from yolojob_trainer.data import builtin_digits, official_datasets
from yolojob_trainer.data.dataset_config import data_files, describe
from yolojob_trainer.data.dataset_description import DatasetDescription
from yolojob_trainer.data.remote_store import open_store
from yolojob_trainer.data.staging import ProgressCallback, Stage
from yolojob_trainer.errors import BadInput

DEFAULT_CONFIG: str = Dataset.model_fields["config"].default
"""Name of a data file, also of a converted dataset."""


@dataclass(frozen=True, kw_only=True)
class NodeFolders:
    """Folders of this node."""

    cache: Path
    volumes: Path
    """In which `pvc://CLAIM/PATH` is `CLAIM/PATH`."""


@dataclass(frozen=True, kw_only=True)
class OpenDataset:
    """A dataset on this node."""

    boundary: Path | None
    """Folder that links in it must not leave; None if they may lead anywhere."""
    description: DatasetDescription


def locate(dataset: Dataset, *, cache: Path, volumes: Path, progress: ProgressCallback) -> Path:
    """Return the folder of the dataset on this node; it is downloaded, unpacked or written on first use.

    A dataset in shards, see `shards`, is unpacked into another folder.

    Raises:
        BadInput: it does not exist, access is denied, it is unsafe, or it does not fit.
        Unavailable: its storage does not answer.
    """
    uri = official_datasets.address(dataset.uri)
    stage = Stage(cache / "datasets", progress, "spec.dataset.uri")
    if uri.scheme == "builtin":
        name = f"{uri.location}-v{builtin_digits.DATASET_VERSION}"
        return stage.make(name, builtin_digits.WRITERS[uri.location])
    if uri.is_remote:
        folder = stage.fetch(open_store(uri, "spec.dataset.uri"))
        return stage.unpack_shards(folder, folder.resolve())
    path = uri.under(volumes).resolve()
    if path.is_dir():
        return stage.unpack_shards(path, link_boundary(dataset, path, volumes))
    if path.suffix.lower() in (".yaml", ".yml"):
        raise BadInput(
            Reason.DATASET_NOT_FOUND,
            f"spec.dataset.uri: {uri}: must be the folder of the dataset; name its data file in spec.dataset.config: "
            f"uri: {str(uri).rpartition('/')[0]}, config: {path.name}",
        )
    if path.is_file():
        return stage.unpack(path)
    raise BadInput(Reason.DATASET_NOT_FOUND, f"spec.dataset.uri: {uri}: there is no folder or archive {path}")


def open_dataset(spec: YoloTrainingJobSpec, folder: Path, task: Task, node: NodeFolders) -> OpenDataset:
    """Describe the dataset of a job. Annotations of COCO and Pascal VOC are converted on first use.

    Args:
        spec: of the job.
        folder: where the dataset is, see `locate`.
        task: of the training.
        node: folders of this node.

    Raises:
        BadInput: it cannot be used.
    """
    uri, split = spec.dataset.uri, spec.train.split or "val"
    config: str | Path = spec.dataset.config
    boundary = link_boundary(spec.dataset, folder, node.volumes)
    if uri.scheme == uris.ULTRALYTICS:
        config = official_datasets.data_file(uri.location)
    elif task is not Task.CLASSIFY and config == DEFAULT_CONFIG and not data_files(folder.resolve()):
        # Most datasets have a data file, and these modules import Ultralytics.
        from yolojob_trainer.data.formats import staged_conversion

        converted = staged_conversion.convert(folder.resolve(), boundary, task, split, node.cache)
        if converted:
            folder, config, boundary = converted, DEFAULT_CONFIG, None
    return OpenDataset(boundary=boundary, description=describe(folder, config, split, boundary, task))


def link_boundary(dataset: Dataset, folder: Path, volumes: Path) -> Path | None:
    """Return the folder that links in a dataset must not leave; None if they may lead anywhere.

    A claim may link within itself. On the user's own machine everything may be linked.

    Args:
        dataset: of the specification.
        folder: of the dataset on this node.
        volumes: folder of the mounted volumes.
    """
    if dataset.uri.scheme == "file":
        return None
    claim = (volumes / dataset.uri.location).resolve()
    # An archive in a claim is unpacked into the cache.
    return claim if dataset.uri.scheme == "pvc" and folder.resolve().is_relative_to(claim) else folder.resolve()
