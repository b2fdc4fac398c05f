"""What a checkpoint holds: out of a trainer, into a trainer, and in the form in which Ultralytics opens it."""

from __future__ import annotations

import dataclasses
import json
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
import ultralytics
from ultralytics.utils.torch_utils import unwrap_model

from yolojob.api.reasons import Reason
from yolojob.api.spec import YoloTrainingJobSpec
from yolojob_trainer.checkpoint.store import State
from yolojob_trainer.errors import BadInput
from yolojob_trainer.training.phase_clock import Clocks

if TYPE_CHECKING:
    from yolojob_trainer.training.trainer import Trainer

FIXED = ("model", "dataset", "train")
"""Parts of the spec that must not change under a checkpoint."""


def run_identity(spec: YoloTrainingJobSpec) -> dict[str, Any]:
    content = spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {part: content[part] for part in FIXED}


def check_fingerprint(state: State, trainer: Trainer) -> None:
    """Refuse to go on with another run's checkpoint.

    Raises:
        BadInput: names what differs, and the way out.
    """
    saved, now = json.loads(state["fingerprint"]), run_identity(trainer.run.spec)
    changed = [
        f"spec.{part}.{key}: {saved[part].get(key)!r} there, {now[part].get(key)!r} here"
        for part in FIXED
        for key in sorted({*saved[part], *now[part]})
        if saved[part].get(key) != now[part].get(key)
    ]
    if changed:
        where = trainer.storage.uri if trainer.storage else "the storage"
        raise BadInput(
            Reason.DIFFERENT_RUN,
            f"{where} holds the checkpoints of another run ({'; '.join(changed)}). Choose another metadata.name or "
            "spec.storage.uri, or remove that folder",
        )


def capture(trainer: Trainer, step: int, finished: bool) -> State:
    """Everything that training goes on from, in full precision, as tensors and plain values."""
    return {
        "fingerprint": json.dumps(run_identity(trainer.run.spec)),
        "choice": dataclasses.asdict(trainer.choice),
        "epoch": trainer.epoch,
        "step": step,
        "samples_seen": min(step * trainer.order.batch, trainer.order.samples),
        "finished": finished,
        "model": unwrap_model(trainer.model).state_dict(),
        "ema": trainer.ema.ema.state_dict(),
        "ema_updates": trainer.ema.updates,
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "best_fitness": trainer.best_fitness,
        "best_metrics": trainer.best_metrics,
        "map50": trainer.map50,
        "map": trainer.map,
        "stopper": {k: float(v) for k, v in vars(trainer.stopper).items() if isinstance(v, int | float)},
        "clocks": vars(trainer.clocks),
        "validations": trainer.validations,
        "rollbacks": trainer.rollbacks,
        "rows": trainer.rows,
    }


def apply(trainer: Trainer, state: State) -> None:
    """Take up where `state` was captured, with whatever number of ranks there is now."""
    model = unwrap_model(trainer.model)
    model.load_state_dict(state["model"])
    trainer.ema.ema.load_state_dict(state["ema"])
    trainer.ema.updates = state["ema_updates"]
    for saved, group in zip(state["optimizer"]["param_groups"], trainer.optimizer.param_groups, strict=True):
        saved["fused"] = group.get("fused")  # the device of now picks the kernel, not that of then
    trainer.optimizer.load_state_dict(state["optimizer"])
    if state["scaler"]:
        trainer.scaler.load_state_dict(state["scaler"])
    trainer.best_fitness, trainer.best_metrics = state["best_fitness"], state["best_metrics"]
    trainer.map50, trainer.map = state["map50"], state["map"]
    for name, value in state["stopper"].items():
        setattr(trainer.stopper, name, type(getattr(trainer.stopper, name))(value))
    trainer.clocks = Clocks(**state["clocks"])
    trainer.validations, trainer.rollbacks = state["validations"], state["rollbacks"]
    trainer.scale_rates()
    trainer.rows = state["rows"]
    trainer.epoch, trainer.step = state["epoch"], state["step"]
    trainer.epochs_done = trainer.epoch
    trainer.scheduler.last_epoch = trainer.epoch - 1
    trainer.resumed_from = f"epoch {trainer.epoch + 1}, image {state['samples_seen']} of {trainer.order.samples}"
    # YOLO26 shifts the weight between its two heads epoch by epoch.
    model.criterion = model.init_criterion()
    if hasattr(model.criterion, "update") and trainer.epoch:
        model.criterion.updates = trainer.epoch - 1
        model.criterion.update()


def stock_checkpoint(trainer: Trainer) -> dict[str, Any]:
    """The EMA in the form in which `ultralytics.YOLO(...)` opens it, in half precision as upstream has it."""
    model = deepcopy(trainer.ema.ema).half().to(memory_format=torch.contiguous_format)
    arguments = dict(vars(trainer.args))
    model.criterion, model.args = None, arguments
    for parameter in model.parameters():
        parameter.requires_grad = False
    return {
        "epoch": -1,
        "best_fitness": trainer.best_fitness,
        "model": model,
        "ema": None,
        "updates": None,
        "optimizer": None,
        "train_args": arguments,
        "train_metrics": {**(trainer.metrics or {}), "fitness": trainer.fitness},
        "train_results": {},
        "version": ultralytics.__version__,
        "license": "AGPL-3.0 (https://ultralytics.com/license)",
        "docs": "https://docs.ultralytics.com",
    }


def results_csv(rows: list[dict[str, float]]) -> str:
    """results.csv in Ultralytics' form: a line per epoch."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [",".join(f"{row[c]:.6g}" if c in row else "" for c in columns) for row in rows]
    return "\n".join([",".join(columns), *lines]) + "\n"
