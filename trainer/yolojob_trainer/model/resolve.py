"""Resolves `spec.model` to a network description and starting weights. Both are untrusted data and never run code."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import ultralytics
from torch.serialization import get_unsafe_globals_in_checkpoint
from ultralytics.nn.tasks import guess_model_scale, load_checkpoint, yaml_model_load
from ultralytics.utils import YAML

from yolojob.api import constants
from yolojob.api.reasons import Reason
from yolojob.api.spec import ModelRef
from yolojob.api.task import Task
from yolojob.api.uri import Uri
from yolojob_trainer.data.object_store import ObjectStore, Unavailable
from yolojob_trainer.data.staging import Stage
from yolojob_trainer.errors import BadInput
from yolojob_trainer.model import official_weights
from yolojob_trainer.system.upstream_patches import forbid_network

CATALOGUE = Path(ultralytics.__file__).parent / "cfg" / "models"
SCALES = "nsmlx"
LAYER_ENTRIES = 4
HEADS = {
    "Detect": Task.DETECT,
    "v10Detect": Task.DETECT,
    "Segment": Task.SEGMENT,
    "Segment26": Task.SEGMENT,
    "Pose": Task.POSE,
    "Pose26": Task.POSE,
    "OBB": Task.OBB,
    "OBB26": Task.OBB,
    "Classify": Task.CLASSIFY,
    "SemanticSegment": Task.SEMANTIC,
    "Depth": Task.DEPTH,
}
"""Tasks by the name of the last module in a network description. Networks with text prompts are not trained."""
ALLOWED_GLOBALS = re.compile(
    r"ultralytics\.(yolo\.)?nn\.(modules(\.\w+)?|tasks)\.\w+|ultralytics\.(yolo\.)?utils\.IterableSimpleNamespace"
    r"|torchvision\.transforms\.(transforms\.(Resize|Compose|CenterCrop|Normalize|ToTensor)|functional\.InterpolationMode)"
    r"|ultralytics\.utils\.(loss|tal)\.\w+|torch\.nn\.modules(\.\w+)?\.\w+|builtins\.getattr"
    r"|numpy(\.\w+)*\.(dtype|scalar|_reconstruct|ndarray)|pathlib(\._local)?\.(Posix|Windows)Path"
)
"""Classes and functions that a file of weights may name, beyond torch's own list. Ultralytics admits more; among them
are classes whose constructor fetches an address that the file chooses. A classification has its transforms."""

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
        scales = ("", *SCALES) if "scales" in content else ("",)
        heads |= {f"{stem}{scale}{dash}{rest}.yaml": _head(content) for scale in scales}
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
    folder, weights_file = _locate_weights(model, volumes, cache)
    if model.name.endswith(".pt"):
        file = weights_file or (folder or Path()) / model.name
        if not file.is_file():
            raise BadInput(Reason.WEIGHTS_NOT_FOUND, f"spec.model.name: {model.name}: there is no file {file}")
        weights: Any = _load(file)
        description: dict[str, Any] = dict(weights.yaml)
    else:
        weights = _load(weights_file) if weights_file else None
        description = _description(model.name, folder)
    found = _task(model, description)
    if task not in (None, found):
        raise BadInput(
            Reason.INVALID_MODEL,
            f"spec.task: {task}: the model {model.name} is for the task {found}: its last module is "
            f"{_head(description)}; leave spec.task out, or choose another model. To start from its weights, name them "
            f"in spec.model.weights.uri and an architecture for {task} in spec.model.name",
        )
    _check_layers(model, description)
    _forbid_downloads(description)
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
        path = Stage(cache / "weights", lambda *_: None, field).fetch(ObjectStore(str(uri), field))
        files = list(path.iterdir())
        if len(files) == 1 and files[0].suffix == ".pt":
            return None, files[0]
        return path, None
    path = uri.under(volumes)
    if path.is_dir():
        return path, None
    if path.is_file() and path.suffix == ".pt":
        return None, path
    raise BadInput(Reason.WEIGHTS_NOT_FOUND, f"{field}: {uri}: there is no .pt file or folder {path}")


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
        trained = sorted(known for known, head in heads.items() if head in HEADS)
        near = difflib.get_close_matches(name, trained, n=3, cutoff=0.4)
        hint = f"; similar names: {', '.join(near)}" if near else ""
        raise BadInput(
            Reason.MODEL_NOT_FOUND, f"spec.model.name: {name}: Ultralytics has no architecture of this name{hint}"
        )
    return dict(yaml_model_load(name))


def _task(model: ModelRef, description: dict[str, Any]) -> Task:
    """Return the task of a network.

    Raises:
        BadInput: it is none that is trained.
    """
    head = _head(description)
    if head in HEADS:
        return HEADS[head]
    raise BadInput(
        Reason.INVALID_MODEL,
        f"spec.model.name: {model.name}: its last module is {head}, but only networks that end with one of "
        f"{', '.join(HEADS)} are trained; to start from its weights, name them in spec.model.weights.uri and an "
        "architecture such as yolo26n.yaml in spec.model.name",
    )


def _check_layers(model: ModelRef, description: dict[str, Any]) -> None:
    """Check the shape of a network description, which comes from a file of the user's.

    Raises:
        BadInput: it is not a list of layers, or its scales are no mapping.
    """
    for part in ("backbone", "head"):
        layers = description.get(part)
        if not isinstance(layers, list) or not all(_is_layer(layer) for layer in layers):
            raise BadInput(
                Reason.INVALID_MODEL,
                f"spec.model.name: {model.name}: {part}: must be a list of [from, repeats, module, arguments]",
            )
    if not isinstance(description.get("scales") or {}, dict):
        raise BadInput(Reason.INVALID_MODEL, f"spec.model.name: {model.name}: scales: must be a mapping")


def _is_layer(layer: Any) -> bool:
    if not isinstance(layer, list) or len(layer) != LAYER_ENTRIES:
        return False
    return isinstance(layer[2], str) and isinstance(layer[3], list)


def _forbid_downloads(description: dict[str, Any]) -> None:
    """Make the modules of torchvision start from random weights: they would fetch others from the network."""
    for _, _, module, arguments in description["backbone"]:
        if module == "TorchVision" and len(arguments) > 2:
            arguments[2] = None


def _head(description: Any) -> str:
    """Return the name of a network description's last module; empty if it has none."""
    try:
        return str(description["head"][-1][2])
    except (KeyError, IndexError, TypeError):
        return ""


def _load(path: Path) -> torch.nn.Module:
    """Load weights as data.

    Raises:
        BadInput: the file names classes that weights do not need, or is no file of weights.
    """
    try:
        unknown = [name for name in get_unsafe_globals_in_checkpoint(path) if not ALLOWED_GLOBALS.fullmatch(name)]
    except Exception:  # noqa: BLE001 - an untrusted file may raise anything; the next step says what is wrong with it
        unknown = []
    if unknown:
        raise BadInput(
            Reason.INVALID_WEIGHTS,
            f"spec.model.weights: {path} needs {', '.join(sorted(unknown)[:3])}, which weights of YOLO do not; save "
            "them again with a current version of Ultralytics",
        )
    try:
        weights, _ = load_checkpoint(path)  # only as data, because ULTRALYTICS_SAFE_LOAD is set
    except Exception as error:  # noqa: BLE001 - an untrusted file may raise anything
        reason = str(error).strip().partition("\n")[0]
        if _is_checkpoint(path):
            reason = "it is a checkpoint, from which only its own run resumes; use weights/last.pt of that run"
        raise BadInput(Reason.INVALID_WEIGHTS, f"spec.model.weights: {path} cannot be loaded: {reason}") from None
    if not isinstance(getattr(weights, "yaml", None), dict):
        raise BadInput(Reason.INVALID_WEIGHTS, f"spec.model.weights: {path} holds no network of YOLO")
    return weights  # type: ignore[no-any-return]


def _is_checkpoint(path: Path) -> bool:
    """Return whether a file is a checkpoint of a run of this trainer, see `yolojob_trainer.checkpoint.store`."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # noqa: BLE001 - an untrusted file may raise anything
        return False
    return isinstance(content, dict) and {"format", "samples_seen", "optimizer"} <= set(content)
