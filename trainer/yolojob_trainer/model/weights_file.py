"""Files of weights: Ultralytics' .pt files, which are pickles, and .safetensors files, which cannot hold code."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.serialization import get_unsafe_globals_in_checkpoint
from ultralytics.nn.tasks import load_checkpoint

from yolojob.api.reasons import Reason
from yolojob.api.spec import SAFE_SUFFIX
from yolojob_trainer.data import untrusted
from yolojob_trainer.errors import BadInput
from yolojob_trainer.model import network

ALLOWED_GLOBALS = re.compile(
    r"ultralytics\.(yolo\.)?nn\.(modules(\.\w+)?|tasks)\.\w+|ultralytics\.(yolo\.)?utils\.IterableSimpleNamespace"
    r"|torchvision\.transforms\.(transforms\.(Resize|Compose|CenterCrop|Normalize|ToTensor)|functional\.InterpolationMode)"
    r"|ultralytics\.utils\.(loss|tal)\.\w+|torch\.nn\.modules(\.\w+)?\.\w+|builtins\.getattr"
    r"|numpy(\.\w+)*\.(dtype|scalar|_reconstruct|ndarray)|pathlib(\._local)?\.(Posix|Windows)Path"
)
"""Classes and functions that a .pt file may name, beyond torch's own list. Ultralytics admits more; among them are
classes whose constructor fetches an address that the file chooses. A classification has its transforms."""
DESCRIPTION = "yolojob.network"
"""Key in the metadata of a .safetensors file: JSON with Ultralytics' description of the network, and its classes."""
MAX_DESCRIPTION = 1 << 20
"""Bytes of that JSON."""


def read(path: Path, field: str) -> torch.nn.Module:
    """Read a network with its weights, as data.

    Args:
        path: a .pt or .safetensors file.
        field: where the path comes from, for an error.

    Returns:
        The network, with its description as `yaml` and, where the file states them, its classes as `names`.

    Raises:
        BadInput: the file is damaged, names classes that weights do not need, or holds no network of YOLO.
    """
    return _read_safetensors(path, field) if path.suffix == SAFE_SUFFIX else _read_pickle(path, field)


def write_safetensors(weights: torch.nn.Module, path: Path) -> None:
    """Write a network as a .safetensors file.

    Args:
        weights: as returned by `read`.
        path: of the new file.

    Raises:
        BadInput: the network has no form in this format.
        OSError: the file cannot be written.
    """
    names = getattr(weights, "names", None) or {}
    content = {"description": weights.yaml, "names": dict(enumerate(names)) if isinstance(names, list) else names}
    tensors = {name: _smallest(tensor) for name, tensor in weights.state_dict().items()}
    try:
        metadata = {"format": "pt", DESCRIPTION: json.dumps(content)}
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInput(Reason.INVALID_WEIGHTS, f"the description of the network is not plain data: {error}") from None
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:  # also for errors of the file system
        raise OSError(f"{path}: cannot be written: {error}") from error


def _smallest(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy of a tensor, in half precision if that changes no value: a .pt file for people has such tensors."""
    if tensor.is_floating_point() and torch.equal(tensor, tensor.half().to(tensor.dtype)):
        tensor = tensor.half()
    return tensor.clone().contiguous()  # the format refuses tensors that share memory, as those of a network may


def _read_safetensors(path: Path, field: str) -> torch.nn.Module:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise BadInput(Reason.INVALID_WEIGHTS, f"{field}: {path} cannot be read: {error}") from None
    description, names = _description(metadata, path, field)
    task = network.task_of(description, field)
    network.check_description(description, field)
    network.forbid_downloads(description)
    with network.building(f"{field}: {path}", Reason.INVALID_WEIGHTS):
        weights: Any = network.NETWORKS[task](deepcopy(description), verbose=False)
        weights.load_state_dict(tensors)
    weights.yaml = description
    if names:
        weights.names = names
    return weights  # type: ignore[no-any-return]


def _description(metadata: dict[str, str], path: Path, field: str) -> tuple[dict[str, Any], dict[int, str]]:
    """Return (description of the network, names of its classes) from the metadata of a .safetensors file."""
    text = metadata.get(DESCRIPTION)
    if text is None:
        raise BadInput(
            Reason.INVALID_WEIGHTS,
            f"{field}: {path} does not describe its network; make the file with `yolojob convert weights best.pt "
            f"best{SAFE_SUFFIX}`",
        )
    problem = f"{field}: {path}: its description of the network is not valid"
    if len(text) > MAX_DESCRIPTION:
        raise BadInput(Reason.INVALID_WEIGHTS, f"{problem}: it has {len(text)} characters, at most {MAX_DESCRIPTION}")
    try:
        content = json.loads(text)
        description, names = content["description"], content["names"]
        names = {int(number): name for number, name in names.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput(Reason.INVALID_WEIGHTS, f"{problem}: {error}") from None
    if not isinstance(description, dict) or not all(untrusted.is_class_name(name) for name in names.values()):
        raise BadInput(Reason.INVALID_WEIGHTS, f"{problem}: it must be a mapping, and names of classes must be text")
    return description, names


def _read_pickle(path: Path, field: str) -> torch.nn.Module:
    try:
        unknown = [name for name in get_unsafe_globals_in_checkpoint(path) if not ALLOWED_GLOBALS.fullmatch(name)]
    except Exception:  # noqa: BLE001 - an untrusted file may raise anything; the next step says what is wrong with it
        unknown = []
    if unknown:
        raise BadInput(
            Reason.INVALID_WEIGHTS,
            f"{field}: {path} needs {', '.join(sorted(unknown)[:3])}, which weights of YOLO do not; save "
            "them again with a current version of Ultralytics",
        )
    try:
        weights, _ = load_checkpoint(path)  # only as data, because ULTRALYTICS_SAFE_LOAD is set
    except Exception as error:  # noqa: BLE001 - an untrusted file may raise anything
        reason = str(error).strip().partition("\n")[0]
        if _is_checkpoint(path):
            reason = "it is a checkpoint, from which only its own run resumes; use weights/last.pt of that run"
        raise BadInput(Reason.INVALID_WEIGHTS, f"{field}: {path} cannot be loaded: {reason}") from None
    if not isinstance(getattr(weights, "yaml", None), dict):
        raise BadInput(Reason.INVALID_WEIGHTS, f"{field}: {path} holds no network of YOLO")
    return weights  # type: ignore[no-any-return]


def _is_checkpoint(path: Path) -> bool:
    """Return whether a file is a checkpoint of a run of this trainer, see `yolojob_trainer.checkpoint.store`."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # noqa: BLE001 - an untrusted file may raise anything
        return False
    return isinstance(content, dict) and {"format", "samples_seen", "optimizer"} <= set(content)
