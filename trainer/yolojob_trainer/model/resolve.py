"""Resolves `spec.model` to a network description and starting weights. Both are untrusted data and never run code."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import ultralytics
from ultralytics.nn.tasks import guess_model_scale, yaml_model_load
from ultralytics.utils import YAML

from yolojob.api import constants
from yolojob.api.reasons import Reason
from yolojob.api.spec import WEIGHTS_SUFFIXES, ModelRef
from yolojob.api.task import Task
from yolojob.api.uri import Uri
from yolojob_trainer.data.object_store import Unavailable
from yolojob_trainer.data.remote_store import open_store
from yolojob_trainer.data.staging import Stage
from yolojob_trainer.errors import BadInput
from yolojob_trainer.model import network, official_weights, weights_file
from yolojob_trainer.system.upstream_patches import forbid_network

CATALOGUE = Path(ultralytics.__file__).parent / "cfg" / "models"
SCALES = "nsmlx"
forbid_network()


@dataclass(frozen=True, kw_only=True)
class NetworkSource:
    """The network of spec.model."""

    task: Task
    description: dict[str, Any]
    """Ultralytics' description of the network."""
    weights: torch.nn.Module | None
    """To start from."""


def architectures() -> dict[str, str]:
    """Return the name of the last module of each architecture of Ultralytics, by the names of the architectures.

    An architecture with scales has one name for each, and one without.
    """
    heads: dict[str, str] = {}
    for path in CATALOGUE.glob("*/*.yaml"):
        content = YAML.load(path)
        stem, dash, rest = path.stem.partition("-")
        # Ultralytics looks for a scale behind the version's digits: not in yolov10b.yaml.
        scales = ("", *SCALES) if "scales" in content and stem[-1].isdigit() else ("",)
        heads |= {f"{stem}{scale}{dash}{rest}.yaml": network.head_of(content) for scale in scales}
    return heads


def architecture_of(model: ModelRef) -> ModelRef:
    """Return the architecture of official weights without the weights, and any other model as it is.

    It has the same size, and needs no download.
    """
    architecture = f"{model.name.removesuffix('.pt')}.yaml"
    is_official = model.weights is None and model.name.endswith(".pt") and architecture in architectures()
    return model.model_copy(update={"name": architecture}) if is_official else model


def resolve(
    model: ModelRef,
    *,
    volumes: Path,
    cache: Path,
    task: Task | None = None,
) -> NetworkSource:
    """Return the network description, its task, and the weights to start from.

    Args:
        model: of the specification.
        volumes: folder of the mounted volumes.
        cache: cache folder of this node.
        task: that the job states.

    Raises:
        BadInput: the model does not exist, cannot be used, or is for another task.
        Unavailable: the storage of the weights does not answer.
    """
    folder, file = _locate_weights(model, volumes, cache)
    field = f"spec.model.name: {model.name}"
    if model.name.endswith(WEIGHTS_SUFFIXES):
        file = file or (folder or Path()) / model.name
        if not file.is_file():
            raise BadInput(Reason.WEIGHTS_NOT_FOUND, f"{field}: there is no file {file}")
        weights: Any = weights_file.read(file, "spec.model.weights")
        description: dict[str, Any] = dict(weights.yaml)
    else:
        weights = weights_file.read(file, "spec.model.weights") if file else None
        description = _description(model.name, folder)
    found = network.task_of(description, field)
    if task not in (None, found):
        raise BadInput(
            Reason.INVALID_MODEL,
            f"spec.task: {task}: the model {model.name} is for the task {found}: its last module is "
            f"{network.head_of(description)}; leave spec.task out, or choose another model. To start from its "
            f"weights, name them in spec.model.weights.uri and an architecture for {task} in spec.model.name",
        )
    network.check_description(description, field)
    network.forbid_downloads(description)
    if model.scale:
        depth, width, max_channels = model.scale
        description |= {"scales": {"n": [depth, width, max_channels]}, "scale": "n"}
    if description.get("scales") and not description.get("scale"):
        description["scale"] = next(iter(description["scales"]))
    return NetworkSource(task=found, description=description, weights=weights)


def _locate_weights(model: ModelRef, volumes: Path, cache: Path) -> tuple[Path | None, Path | None]:
    """Return (folder, file) of the weights that the model states; at most one of them is not None."""
    if model.weights:
        return _fetch(model.weights.uri, "spec.model.weights.uri", volumes, cache)
    if not model.name.endswith(".pt"):
        return None, None
    uri = official_weights.locate(model.name)
    advice = (
        f"copy the file to a volume or a bucket and set spec.model.weights.uri, set {constants.ENV_WEIGHTS} (in the "
        "chart: trainer.weights) to a folder with official weights, or start without weights from "
        f"{model.name.removesuffix('.pt')}.yaml"
    )
    try:
        return _fetch(uri, f"spec.model.name: {model.name}", volumes, cache)
    except Unavailable as error:
        raise Unavailable(f"{error}; where the network does not reach it, {advice}") from error
    except BadInput as error:
        if error.reason in (Reason.NO_SPACE, Reason.CACHE_FAILED):
            raise
        raise BadInput(error.reason, f"{error}; {advice}") from error


def _fetch(uri: Uri, field: str, volumes: Path, cache: Path) -> tuple[Path | None, Path | None]:
    """Return (folder, file) at a URI, on this node; one of them is None."""
    if uri.is_remote:
        path = Stage(cache / "weights", lambda *_: None, field).fetch(open_store(uri, field))
        files = list(path.iterdir())
        if len(files) == 1 and files[0].suffix in WEIGHTS_SUFFIXES:
            return None, files[0]
        return path, None
    path = uri.under(volumes)
    if path.is_dir():
        return path, None
    if path.is_file() and path.suffix in WEIGHTS_SUFFIXES:
        return None, path
    kinds = " or ".join(WEIGHTS_SUFFIXES)
    raise BadInput(Reason.WEIGHTS_NOT_FOUND, f"{field}: {uri}: there is no {kinds} file and no folder {path}")


def _description(name: str, folder: Path | None) -> dict[str, Any]:
    if folder and (folder / name).is_file():
        try:
            description = YAML.load(folder / name)
        except Exception as error:  # noqa: BLE001 - the YAML library raises many types of errors
            raise BadInput(Reason.INVALID_MODEL, f"spec.model.name: {name}: is not valid YAML: {error}") from None
        if not isinstance(description, dict) or not {"backbone", "head"} <= set(description):
            raise BadInput(Reason.INVALID_MODEL, f"spec.model.name: {name}: has no backbone and head")
        description["scale"] = guess_model_scale(name)
        return dict(description)
    heads = architectures()
    if name not in heads:
        trained = sorted(known for known, head in heads.items() if head in network.HEADS)
        near = difflib.get_close_matches(name, trained, n=3, cutoff=0.4)
        hint = f"; similar names: {', '.join(near)}" if near else ""
        raise BadInput(
            Reason.MODEL_NOT_FOUND, f"spec.model.name: {name}: Ultralytics has no architecture of this name{hint}"
        )
    return dict(yaml_model_load(name))
