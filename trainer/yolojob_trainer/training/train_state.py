"""Progress of a training, the identity of its run, and the stateful objects that a checkpoint restores.

A checkpoint holds `TrainState.state_dict()`, `TrainedObjects.state_dict()` and a few entries that the trainer adds.
Order of restoring: first both `load_state_dict`, in any order; then `TrainedObjects.scale_rates`, because it needs the
number of rollbacks from the state and must overwrite the learning rates that come with the optimizer; then
`TrainedObjects.restart_schedule`, because it needs the epoch and builds the criterion for the loaded network.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import torch

from yolojob.api.reasons import Reason
from yolojob.api.spec import YoloTrainingJobSpec
from yolojob_trainer.checkpoint.store import CheckpointContent
from yolojob_trainer.errors import BadInput
from yolojob_trainer.training.time_account import TimeAccount

FIXED_PARTS = ("model", "dataset", "train")
"""Parts of the spec that must not change between a checkpoint and a resume."""
CHANGEABLE_SETTINGS = ("cache", "channels_last", "patience", "plots", "save_period", "val_period", "verbose", "workers")
"""Settings of spec.train that may change: they have no effect on the weights, or only on when the training ends."""
OLD_METRICS = {"map50": "mAP50(B)", "map": "mAP50-95(B)"}
"""Current names of the metrics in checkpoints of older versions."""


def run_identity(spec: YoloTrainingJobSpec) -> dict[str, Any]:
    """Return the parts of the spec that make two runs the same."""
    content = spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    parts = {part: content[part] for part in FIXED_PARTS}
    parts["train"] = {key: value for key, value in parts["train"].items() if key not in CHANGEABLE_SETTINGS}
    return parts


def check_same_run(checkpoint: CheckpointContent, spec: YoloTrainingJobSpec, location: str) -> None:
    """Check that a checkpoint belongs to this run.

    Args:
        checkpoint: from `location`.
        spec: of this run.
        location: where the checkpoint is, for the message.

    Raises:
        BadInput: it belongs to another run; the message names the differences and the way out.
    """
    saved, now = json.loads(checkpoint["fingerprint"]), run_identity(spec)
    changed = [
        f"spec.{part}.{key}: {saved[part].get(key)!r} there, {now[part].get(key)!r} here"
        for part in FIXED_PARTS
        for key in sorted({*saved[part], *now[part]})
        if saved[part].get(key) != now[part].get(key) and not (part == "train" and key in CHANGEABLE_SETTINGS)
    ]
    if changed:
        raise BadInput(
            Reason.DIFFERENT_RUN,
            f"{location} holds the checkpoints of another run ({'; '.join(changed)}). Choose another metadata.name or "
            "spec.storage.uri, or remove that folder. To go on from its weights with other settings or for more "
            f"epochs, set spec.model.name to a .pt file and spec.model.weights.uri to {location}/weights/last.pt in a "
            "new job",
        )


def check_same_dataset(checkpoint: CheckpointContent, data: dict[str, Any], location: str) -> None:
    """Check that the classes and key points of the dataset are those of a checkpoint.

    Args:
        checkpoint: from `location`; those of older versions do not hold the classes.
        data: the content of the data file.
        location: where the checkpoint is, for the message.

    Raises:
        BadInput: they are not; the network's head would not fit, or mean something else.
    """
    names = data["names"]
    keypoints = data.get("kpt_shape")
    if (there := checkpoint.get("keypoints", keypoints)) != keypoints:
        raise BadInput(
            Reason.DIFFERENT_RUN,
            f"{location} holds checkpoints for kpt_shape: {there}, but the data file has {keypoints}. Choose another "
            "metadata.name or spec.storage.uri",
        )
    saved = checkpoint.get("names", list(names.values()))
    if saved != list(names.values()):
        raise BadInput(
            Reason.DIFFERENT_RUN,
            f"{location} holds checkpoints for the classes {', '.join(saved)[:200]}, but the dataset has "
            f"{', '.join(names.values())[:200]}. Choose another metadata.name or spec.storage.uri",
        )


@dataclass
class TrainState:
    """Progress of a training, as plain values."""

    epoch: int = 0
    step: int = 0
    """Epoch and step that run next, counted from 0."""
    best_fitness: float | None = None
    best_metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of the best validation so far, by their names."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of the newest validation, by their names."""
    clocks: TimeAccount = field(default_factory=TimeAccount)
    validations: int = 0
    rollbacks: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)
    """Rows of results.csv, one for each epoch."""
    loss_totals: dict[str, float] = field(default_factory=dict)
    """`EpochLosses.totals` of the epoch's steps before `step`."""

    @property
    def rate_scale(self) -> float:
        """Factor on the learning rate: each rollback halves it."""
        return 0.5**self.rollbacks

    def state_dict(self) -> dict[str, Any]:
        """Return all fields as plain values."""
        return {**vars(self), "clocks": vars(self.clocks)}

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Set all fields from a dictionary that holds at least the entries of `state_dict`."""
        for name, default in vars(self).items():
            value = content.get(name, default)  # checkpoints of older versions lack some
            if name == "best_metrics":
                value = {OLD_METRICS.get(metric, metric): number for metric, number in value.items()}
            if name == "metrics" and name not in content:
                value = {new: content[old] for old, new in OLD_METRICS.items() if content.get(old) is not None}
            setattr(self, name, TimeAccount(**value) if name == "clocks" else value)


@dataclass
class TrainedObjects:
    """The objects of PyTorch and Ultralytics whose state changes during a training."""

    network: Any
    """Not wrapped by DDP or torch.compile."""
    ema: Any
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    stopper: Any
    scheduler: Any

    def __post_init__(self) -> None:
        self._initial_rates = list(self.scheduler.base_lrs)

    def state_dict(self) -> dict[str, Any]:
        """Return their states in full precision, as tensors and plain values."""
        return {
            "model": self.network.state_dict(),
            "ema": self.ema.ema.state_dict(),
            "ema_updates": self.ema.updates,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            # Without the patience: it comes from the job, which may have changed it.
            "stopper": {
                k: float(v) for k, v in vars(self.stopper).items() if isinstance(v, int | float) and k != "patience"
            },
        }

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Set their states from a dictionary that holds at least the entries of `state_dict`."""
        self.network.load_state_dict(content["model"])
        self.ema.ema.load_state_dict(content["ema"])
        self.ema.updates = content["ema_updates"]
        for saved, group in zip(content["optimizer"]["param_groups"], self.optimizer.param_groups, strict=True):
            saved["fused"] = group.get("fused")  # the kernel depends on the current device, not on the saving one
        self.optimizer.load_state_dict(content["optimizer"])
        if content["scaler"]:
            self.scaler.load_state_dict(content["scaler"])
        for name, value in content["stopper"].items():
            if name == "patience":  # of a checkpoint of an older version
                continue
            field_type = type(getattr(self.stopper, name))
            setattr(self.stopper, name, field_type(value))

    def scale_rates(self, scale: float) -> None:
        """Multiply the initial learning rates of optimizer and schedule by `scale`."""
        self.scheduler.base_lrs = [rate * scale for rate in self._initial_rates]
        for rate, group in zip(self.scheduler.base_lrs, self.optimizer.param_groups, strict=True):
            group["initial_lr"] = rate

    def restart_schedule(self, epoch: int) -> None:
        """Set the learning rate schedule and the criterion to the beginning of an epoch, counted from 0."""
        self.scheduler.last_epoch = epoch - 1
        # The criterion of YOLO26 shifts the weight between its two heads in every epoch.
        self.network.criterion = self.network.init_criterion()
        if hasattr(self.network.criterion, "update") and epoch:
            self.network.criterion.updates = epoch - 1
            self.network.criterion.update()
