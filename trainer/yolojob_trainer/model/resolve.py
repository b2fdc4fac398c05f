"""Resolves `spec.model` to a network description and starting weights. Both are untrusted data and never run code."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import torch
import ultralytics
from ultralytics.nn.tasks import guess_model_scale, load_checkpoint, yaml_model_load
from ultralytics.utils import YAML

from yolojob.api.reasons import Reason
from yolojob.api.spec import ModelRef
from yolojob_trainer.data.object_store import ObjectStore
from yolojob_trainer.data.staging import Stage
from yolojob_trainer.errors import BadInput

CATALOGUE = Path(ultralytics.__file__).parent / "cfg" / "models"
SCALES = "nsmlx"


def known_architectures() -> list[str]:
    """Return the names of all architectures of Ultralytics, with their scales."""
    names = []
    for path in CATALOGUE.glob("*/*.yaml"):
        names.append(path.name)
        if "scales:" in path.read_text(encoding="utf-8"):
            stem, dash, rest = path.stem.partition("-")
            names += [f"{stem}{scale}{dash}{rest}.yaml" for scale in SCALES]
    return sorted(names)


def resolve(model: ModelRef, *, volumes: Path, cache: Path) -> tuple[dict[str, Any], torch.nn.Module | None]:
    """Return the network description, and the weights to start from or None.

    Args:
        model: of the specification.
        volumes: folder of the mounted volumes.
        cache: cache folder of this node.

    Raises:
        BadInput: the model does not exist or cannot be used.
    """
    folder, weights_file = _locate_weights(model, volumes, cache)
    if model.name.endswith(".pt"):
        file = weights_file or (folder / model.name if folder else None)
        if file is None:
            raise BadInput(
                Reason.MODEL_NOT_FOUND, f"spec.model.name: {model.name}: weights need spec.model.weights.uri"
            )
        weights: Any = _load(file)
        description: dict[str, Any] = dict(weights.yaml)
    else:
        weights = _load(weights_file) if weights_file else None
        description = _description(model.name, folder)
    if model.scale:
        depth, width, max_channels = model.scale
        description |= {"scales": {"n": [depth, width, max_channels]}, "scale": "n"}
    if description.get("scales") and not description.get("scale"):
        description["scale"] = next(iter(description["scales"]))
    return description, weights


def _locate_weights(model: ModelRef, volumes: Path, cache: Path) -> tuple[Path | None, Path | None]:
    """Return (folder, file) of spec.model.weights; at most one of them is not None."""
    if model.weights is None:
        return None, None
    uri = model.weights.uri
    if uri.is_remote:
        store = ObjectStore(str(uri), "spec.model.weights.uri")
        path = Stage(cache / "weights", lambda *_: None, "spec.model.weights.uri").fetch(store)
        files = list(path.iterdir())
        if len(files) == 1 and files[0].suffix == ".pt":
            return None, files[0]
        return path, None
    path = uri.under(volumes)
    if path.is_dir():
        return path, None
    if path.is_file() and path.suffix == ".pt":
        return None, path
    raise BadInput(Reason.WEIGHTS_NOT_FOUND, f"spec.model.weights.uri: {uri}: there is no .pt file or folder {path}")


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
    names = known_architectures()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
        hint = f"; similar names: {', '.join(near)}" if near else ""
        raise BadInput(
            Reason.MODEL_NOT_FOUND, f"spec.model.name: {name}: Ultralytics has no architecture of this name{hint}"
        )
    return dict(yaml_model_load(name))


def _load(path: Path) -> torch.nn.Module:
    try:
        weights, _ = load_checkpoint(path)  # only as data, because ULTRALYTICS_SAFE_LOAD is set
    except Exception as error:  # noqa: BLE001 - an untrusted file may raise anything
        reason = str(error).strip().partition("\n")[0]
        raise BadInput(Reason.INVALID_WEIGHTS, f"spec.model.weights: {path} cannot be loaded: {reason}") from None
    return weights  # type: ignore[no-any-return]
