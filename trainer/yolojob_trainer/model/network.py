"""Network descriptions of Ultralytics: the task that they are for, and their shape. A description is untrusted data."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from ultralytics.nn import tasks

from yolojob.api.reasons import Reason
from yolojob.api.task import Task
from yolojob.format import printable
from yolojob_trainer.data.untrusted import integer
from yolojob_trainer.errors import BadInput

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
NETWORKS: dict[Task, type[nn.Module]] = {
    Task.DETECT: tasks.DetectionModel,
    Task.SEGMENT: tasks.SegmentationModel,
    Task.POSE: tasks.PoseModel,
    Task.OBB: tasks.OBBModel,
    Task.CLASSIFY: tasks.ClassificationModel,
    Task.SEMANTIC: tasks.SemanticSegmentationModel,
    Task.DEPTH: tasks.DepthModel,
}
_ARGUMENT = r"(\w+ *= *)?(-?[0-9]+(\.[0-9]*)?(e-?[0-9]+)?|True|False)"
ACTIVATION = re.compile(rf"(torch\.)?nn\.\w+\( *({_ARGUMENT}( *, *{_ARGUMENT})*)? *\)")
"""Such as nn.LeakyReLU(negative_slope=0.1). Ultralytics evaluates the text as Python, unless told otherwise."""
MAX_REPEATS, MAX_LAYERS = 100, 1000
"""Of a layer, and of layers in a description: several times those of the largest architectures."""
SHOWN = 100
"""Characters of a value from a description in a message."""
TORCHVISION_ARGUMENTS = 3
"""Of a layer TorchVision, up to its weights: channels, name of the model, weights."""


def head_of(description: Any) -> str:
    """Return the name of a network description's last module; empty if it has none."""
    try:
        return str(description["head"][-1][2])
    except (KeyError, IndexError, TypeError):
        return ""


def task_of(description: Any, field: str) -> Task:
    """Return the task of a network.

    Args:
        description: Ultralytics' description of the network.
        field: where it comes from, for an error.

    Raises:
        BadInput: it cannot be trained.
    """
    head = head_of(description)
    if head in HEADS:
        return HEADS[head]
    raise BadInput(
        Reason.INVALID_MODEL,
        f"{field}: its last module is {printable(head[:SHOWN])}, but only networks that end with one of "
        f"{', '.join(HEADS)} are trained; to start from its weights, name them in spec.model.weights.uri and an "
        "architecture such as yolo26n.yaml in spec.model.name",
    )


def check_description(description: Any, field: str) -> None:
    """Check the shape of a network description.

    Args:
        description: of the network.
        field: where it comes from, for an error.

    Raises:
        BadInput: its layers are not a list, a layer is not a module, or its scales are not a mapping.
    """
    for part in ("backbone", "head"):
        layers = description.get(part)
        if not isinstance(layers, list) or len(layers) > MAX_LAYERS or not all(_is_layer(layer) for layer in layers):
            raise BadInput(
                Reason.INVALID_MODEL,
                f"{field}: {part}: must be a list of [from, repeats, module, arguments], with at most {MAX_REPEATS} "
                "repeats",
            )
        unknown = next((layer[2] for layer in layers if not _is_module(layer[2])), None)
        if unknown is not None:
            raise BadInput(Reason.INVALID_MODEL, f"{field}: {part}: {unknown[:SHOWN]!r} is not a module of a network")
    activation = description.get("activation")
    if activation and not (isinstance(activation, str) and ACTIVATION.fullmatch(activation.strip())):
        raise BadInput(
            Reason.INVALID_MODEL,
            f"{field}: activation: {str(activation)[:SHOWN]!r} must be a module of torch.nn with numbers as arguments, "
            "such as nn.LeakyReLU(0.1)",
        )
    if not isinstance(description.get("scales") or {}, dict):
        raise BadInput(Reason.INVALID_MODEL, f"{field}: scales: must be a mapping")


def forbid_downloads(description: dict[str, Any]) -> None:
    """Make the modules of torchvision start from random weights: they would fetch others from the network."""
    for _, _, module, arguments in (*description["backbone"], *description["head"]):
        if module == "TorchVision":  # whose default are weights, too
            arguments += [None] * (TORCHVISION_ARGUMENTS - len(arguments))
            arguments[2] = None


@contextmanager
def building(field: str, reason: Reason = Reason.INVALID_MODEL) -> Iterator[None]:
    """Translate the errors of Ultralytics and torch while they build a network.

    Args:
        field: where the description comes from, for an error.
        reason: of the error.

    Raises:
        BadInput: no network can be built of the description.
    """
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split())[:300] or type(error).__name__
        raise BadInput(reason, f"{field}: the network cannot be built: {text}") from error


def _is_layer(layer: Any) -> bool:
    if not isinstance(layer, list) or len(layer) != LAYER_ENTRIES:
        return False
    _, repeats, module, arguments = layer
    number = integer(repeats)
    return number is not None and number <= MAX_REPEATS and isinstance(module, str) and isinstance(arguments, list)


def _is_module(name: str) -> bool:
    """Return whether a layer names a module, and neither a function nor a whole network, which may read other files."""
    namespace, _, attribute = name.rpartition(".")
    owner: Any = {"": tasks, "nn": nn}.get(namespace)
    if namespace == "torchvision.ops":  # which takes seconds to import, and hardly any network needs it
        owner = importlib.import_module(namespace)
    found = getattr(owner, attribute, None)
    return isinstance(found, type) and issubclass(found, nn.Module) and not issubclass(found, tasks.BaseModel)
