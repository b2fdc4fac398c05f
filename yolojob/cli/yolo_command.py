"""Converts a command or the settings of Ultralytics into a manifest. Pure.

The syntax of a command is that of https://docs.ultralytics.com/usage/cli/: `yolo [TASK] [MODE] ARGUMENT=VALUE…`.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from yolojob.api.constants import API_VERSION, KIND, MAX_NAME_LENGTH
from yolojob.api.errors import UserError
from yolojob.api.spec import OFFICIAL_WEIGHTS
from yolojob.api.structural import unknown_field
from yolojob.api.task import SUFFIXES, Task, tasks_of_name
from yolojob.api.train_settings import OWN_SETTINGS, REPLACED, TrainSettings
from yolojob.api.uri import DATASET_SCHEMES, ULTRALYTICS, ULTRALYTICS_DATASETS

MODES = ("train", "val", "predict", "export", "track", "benchmark")
MODE = "train"
"""What a job does."""
DEFAULT_MODEL = "yolo26n"
"""Ultralytics' model without `model`; the suffix of the task follows."""
OFFICIAL_DETECTOR = re.compile(r"yolo(v\d+|\d+)[a-z]?u?(-p[26])?\.(pt|yaml)")
"""Names of Ultralytics' models for detection, which have no suffix."""
CLASSIFY_IMGSZ = 224
"""Ultralytics' image size of a classification without `imgsz`."""
CLAIM = "data"
"""Claim of the volume with local data, in the manifest."""
SECONDS_PER_HOUR = 3600
MAX_HOURS = 100_000
ULTRALYTICS_DEFAULTS = {"amp": True, "dis": 6.0, "save": True}
"""Defaults that are not those of `TrainSettings`; an args.yaml holds all settings."""
UNUSED = frozenset(
    [
        "dnn",
        "dynamic",
        "embed",
        "format",
        "half",
        "int8",
        "keras",
        "line_width",
        "nms",
        "opset",
        "optimize",
        "retina_masks",
        "save_conf",
        "save_dir",
        "save_crop",
        "save_frames",
        "save_txt",
        "show",
        "show_boxes",
        "show_conf",
        "show_labels",
        "simplify",
        "source",
        "stream_buffer",
        "tracker",
        "vid_stride",
        "visualize",
        "workspace",
    ]
)
"""Arguments of Ultralytics for prediction, tracking and export, which a training ignores."""
FLAGS = ("exist_ok", "rect", "resume", "save", "save_json")
"""Booleans that are no setting of `TrainSettings`."""
NO_PLACE = {
    "cfg": "its settings are not read; convert that file with `yolojob from-yolo FILE`",
    "crop_fraction": "Ultralytics has removed it",
    "label_smoothing": "Ultralytics has removed it",
    "save_json": "run `yolo val save_json=True` with the finished weights",
}
"""Arguments of a training without a place in a manifest, with what to do instead."""
_SEPARATOR = "\x1f"
"""Of words; white space for a regular expression."""


class NotConvertible(UserError):
    """The command cannot be converted; the message says why."""


@dataclass
class Conversion:
    """A manifest, and notes about the arguments that are not simply copied."""

    manifest: dict[str, Any]
    task: Task = Task.DETECT
    notes: list[str] = field(default_factory=list)
    """In the order of the arguments."""


def parse_command(command: str) -> dict[str, Any]:
    """Return the arguments of a command.

    Raises:
        NotConvertible: it is no command for a training, or its syntax is wrong.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise NotConvertible(f"the command cannot be read: {error}") from None
    if not words or words[0] != "yolo":
        raise NotConvertible("the command must begin with yolo, such as 'yolo detect train data=coco8.yaml epochs=3'")
    # As Ultralytics does: "a = 1" and "a= 1" are one argument.
    text = re.sub(r"\s*=\s*", "=", _SEPARATOR.join(words[1:]))
    arguments: dict[str, Any] = {}
    for word in text.split(_SEPARATOR) if text else []:
        name, equals, value = word.removeprefix("--").rstrip(",").partition("=")
        if equals:
            arguments[name] = parse_value(value)
        elif name in list(Task):
            arguments["task"] = name
        elif name in MODES:
            arguments["mode"] = name
        elif name in FLAGS or isinstance(_default(name), bool):
            arguments[name] = True  # Ultralytics takes the name of a boolean for "on"
        else:
            raise NotConvertible(f"{word}: is no task, no mode and no ARGUMENT=VALUE")
    return arguments


def parse_value(text: str) -> Any:
    """Return the Python value of an argument; other text stays text."""
    constants = {"none": None, "true": True, "false": False}
    if text.lower() in constants:
        return constants[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def convert(arguments: dict[str, Any]) -> Conversion:
    """Return the manifest of a training with these arguments.

    Args:
        arguments: of a command, or all settings of an `args.yaml`.

    Raises:
        NotConvertible: a job cannot do what the arguments say.
    """
    if arguments.get("mode") not in (None, MODE):
        raise NotConvertible(f"mode: {arguments['mode']}: a job can only {MODE}")
    conversion = _begin(arguments)
    spec = conversion.manifest["spec"]
    _CONVERTERS["data"](arguments.get("data"), conversion)
    for name, value in arguments.items():
        if name in ("model", "data", "task", "mode") or value is None or value == ULTRALYTICS_DEFAULTS.get(name):
            continue
        if name in _CONVERTERS:
            _CONVERTERS[name](value, conversion)
        elif name in TrainSettings.model_fields and name not in OWN_SETTINGS:
            if value != _default(name):
                spec["train"][name] = value
        elif name in UNUSED:
            continue
        elif name in REPLACED or name in NO_PLACE:
            if value not in (False, "", 0):
                conversion.notes.append(f"{name}={value}: {NO_PLACE.get(name) or REPLACED[name]}")
        else:
            known = [*TrainSettings.model_fields, *REPLACED, *NO_PLACE, *UNUSED]
            raise NotConvertible(f"{name}: {unknown_field(name, known)}")
    if not spec["workers"]:
        del spec["workers"]
        conversion.notes.append("no GPU: set spec.workers.gpu.count to train on GPUs")
    return conversion


def _begin(arguments: dict[str, Any]) -> Conversion:
    """Return a manifest with the task and the model.

    Raises:
        NotConvertible: there is no such task.
    """
    stated = arguments.get("task")
    if stated not in (None, *Task):
        raise NotConvertible(f"task: {stated}: must be {', '.join(Task)}")
    suffix = next((suffix for suffix, task in SUFFIXES.items() if task == stated), "")
    model = str(arguments.get("model") or f"{DEFAULT_MODEL}{suffix}.pt")
    of_model = _task_of_model(model)
    spec: dict[str, Any] = {"task": stated} if stated and not of_model else {}
    spec |= {"model": {}, "dataset": {}, "train": {}, "workers": {}}
    document = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "train"}, "spec": spec}
    conversion = Conversion(document, task=of_model or Task(stated or Task.DETECT))
    if of_model and stated not in (None, of_model):
        conversion.notes.append(f"task={stated}: the model {model} is for {of_model}, which counts, as in Ultralytics")
    _CONVERTERS["model"](model, conversion)
    if conversion.task is Task.CLASSIFY and arguments.get("imgsz") is None:
        spec["train"]["imgsz"] = CLASSIFY_IMGSZ
    return conversion


def _default(name: str) -> Any:
    """Return Ultralytics' default of a training setting, which its description states; None if it has none."""
    model = TrainSettings.model_fields.get(name)
    if model is None:
        return None
    if model.default is not None:
        return model.default
    stated = re.search(r"Default: ([^\s,]+?)[.,]?(\s|$)", model.description or "")
    return parse_value(stated[1]) if stated else None


def _task_of_model(model: str) -> Task | None:
    """Return the task that the name of a model states; None for a model of the user's own."""
    name = PurePosixPath(model).name
    return next(iter(tasks_of_name(name)), Task.DETECT if OFFICIAL_DETECTOR.fullmatch(name) else None)


# --- arguments with a place of their own ----------------------------------------------------------------------------


def _model(value: Any, conversion: Conversion) -> None:
    model = conversion.manifest["spec"]["model"]
    name = PurePosixPath(str(value)).name
    model["name"] = name
    if not name.endswith(".pt"):
        if name != str(value):
            model["weights"] = {"uri": f"pvc://{CLAIM}/models"}
            conversion.notes.append(f"model={value}: copy it to the folder models of the volume claim {CLAIM}")
        return
    if name == str(value) and re.fullmatch(OFFICIAL_WEIGHTS, name):
        return
    model["weights"] = {"uri": f"pvc://{CLAIM}/weights/{name}"}
    conversion.notes.append(
        f"model={value}: copy the file to weights/{name} of the volume claim {CLAIM}, or set spec.model.weights.uri to "
        "an address in a bucket or at https"
    )


def _data(value: Any, conversion: Conversion) -> None:
    dataset = conversion.manifest["spec"]["dataset"]
    text = str(value or "")
    scheme, separator, _ = text.partition("://")
    is_dataset = separator and scheme in DATASET_SCHEMES and scheme != "file"
    if is_dataset and not text.endswith((".yaml", ".yml")):
        dataset["uri"] = text
        return
    stem = text.removesuffix(".yaml")
    if stem in ULTRALYTICS_DATASETS and (stem == text) is (conversion.task is Task.CLASSIFY):
        dataset["uri"] = f"{ULTRALYTICS}://{stem}"
        return
    if conversion.task is Task.CLASSIFY:
        folder = _label(PurePosixPath(text).name or "data")
        dataset["uri"] = f"pvc://{CLAIM}/{folder}"
        conversion.notes.append(
            f"data={text or 'not given'}: copy the folder with train and val to the folder {folder} of the volume "
            f"claim {CLAIM}, or set spec.dataset.uri to an archive or a folder in a bucket"
        )
        return
    path = PurePosixPath(text or "data.yaml")
    folder = path.parent.name if path.is_absolute() or len(path.parts) > 1 else path.stem
    dataset["uri"] = f"pvc://{CLAIM}/{_label(folder)}"
    if path.suffix in (".yaml", ".yml") and path.name != "data.yaml":
        dataset["config"] = path.name
    conversion.notes.append(
        f"data={text or 'not given'}: copy the dataset with {path.name} to the folder {_label(folder)} of the volume "
        f"claim {CLAIM}, or set spec.dataset.uri to an archive or a folder in a bucket"
    )


def _name(value: Any, conversion: Conversion) -> None:
    conversion.manifest["metadata"]["name"] = _label(str(value))


def _device(value: Any, conversion: Conversion) -> None:
    text = str(value).strip("[]() ").removeprefix("cuda:")
    if text in ("", "cpu"):
        return
    devices = [part for part in re.split(r"[\s,]+", text) if part]
    if not all(re.fullmatch(r"-?\d+", device) for device in devices):
        conversion.notes.append(f"device={value}: is not supported; the manifest trains on the CPU")
        return
    conversion.manifest["spec"]["workers"]["gpu"] = {"count": len(devices)}
    if len(devices) > 1:
        conversion.notes.append(
            f"device={value}: {len(devices)} GPUs in one worker; for several machines set spec.workers.replicas"
        )


def _batch(value: Any, conversion: Conversion) -> None:
    if isinstance(value, int) and value > 0:
        if value != _default("batch"):
            conversion.manifest["spec"]["train"]["batch"] = value
        return
    conversion.notes.append(
        f"batch={value}: the batch is not chosen automatically; the manifest has the default, {_default('batch')}"
    )


def _imgsz(value: Any, conversion: Conversion) -> None:
    size = value
    if isinstance(value, list | tuple) and value and all(isinstance(side, int) for side in value):
        size = max(value)
    if size != value:
        conversion.notes.append(f"imgsz={value}: images are square: the larger side counts, as in Ultralytics")
    if size != _default("imgsz"):
        conversion.manifest["spec"]["train"]["imgsz"] = size


def _time(value: Any, conversion: Conversion) -> None:
    if not isinstance(value, int | float) or not 0 < value < MAX_HOURS:
        raise NotConvertible(f"time: {value}: must be a number of hours")
    seconds = max(round(value * SECONDS_PER_HOUR), 1)
    conversion.manifest["spec"]["runPolicy"] = {"activeDeadlineSeconds": seconds}
    conversion.notes.append(
        f"time={value}: at this deadline the job fails and keeps its checkpoints; Ultralytics fits the number of epochs"
    )


def _pretrained(value: Any, conversion: Conversion) -> None:
    model = conversion.manifest["spec"]["model"]
    if value is True:
        return
    if value is False:
        model.pop("weights", None)
        if model["name"].endswith(".pt"):
            model["name"] = model["name"].removesuffix(".pt") + ".yaml"
        conversion.notes.append("pretrained=False: the training starts from random weights")
        return
    name = PurePosixPath(str(value)).name
    model["weights"] = {"uri": f"pvc://{CLAIM}/weights/{name}"}
    conversion.notes.append(f"pretrained={value}: copy the file to weights/{name} of the volume claim {CLAIM}")


def _multi_scale(value: Any, conversion: Conversion) -> None:
    if value is True:  # of Ultralytics before 8.4
        value = 0.5
        conversion.notes.append("multi_scale=True: from 0.5 to 1.5 of imgsz, as in earlier versions of Ultralytics")
    if value:
        conversion.manifest["spec"]["train"]["multi_scale"] = value


_CONVERTERS: dict[str, Callable[[Any, Conversion], None]] = {
    "model": _model,
    "data": _data,
    "name": _name,
    "device": _device,
    "batch": _batch,
    "imgsz": _imgsz,
    "time": _time,
    "pretrained": _pretrained,
    "multi_scale": _multi_scale,
}


def _label(text: str) -> str:
    """Return a name that Kubernetes allows, close to the text."""
    label = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    label = label if label[:1].isalpha() else f"train-{label}".rstrip("-")
    return label[:MAX_NAME_LENGTH].rstrip("-")
