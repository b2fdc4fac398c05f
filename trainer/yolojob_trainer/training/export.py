"""Files of a run for people: weights that stock Ultralytics opens, and results.csv."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
import ultralytics

_GROUPS = ("epoch", "time", "train", "metrics", "val", "lr")
"""First parts of the columns of results.csv, in Ultralytics' order."""


def stock_checkpoint(ema: Any, args: Any, best_fitness: float | None, metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the EMA in the form that `ultralytics.YOLO(...)` opens, in half precision like upstream's.

    Args:
        ema: the averaged network.
        args: Ultralytics' settings of the training.
        best_fitness: fitness of the best validation so far.
        metrics: of this validation, with its fitness.
    """
    # On the CPU, so that a machine without a GPU can load it.
    model = deepcopy(ema).cpu().half().to(memory_format=torch.contiguous_format)
    arguments = dict(vars(args))
    model.criterion, model.args = None, arguments
    for parameter in model.parameters():
        parameter.requires_grad = False
    return {
        "epoch": -1,
        "best_fitness": best_fitness,
        "model": model,
        "ema": None,
        "updates": None,
        "optimizer": None,
        "train_args": arguments,
        "train_metrics": metrics,
        "train_results": {},
        "version": ultralytics.__version__,
        "license": "AGPL-3.0 (https://ultralytics.com/license)",
        "docs": "https://docs.ultralytics.com",
    }


def results_csv(rows: list[dict[str, float]]) -> str:
    """Return results.csv in Ultralytics' form: one line for each epoch, with empty fields where it has no value."""
    names = dict.fromkeys(name for row in rows for name in row)
    # In upstream's order, also if only later epochs have been validated.
    columns = sorted(names, key=lambda name: _GROUPS.index(name.partition("/")[0]))
    lines = [",".join(f"{row[c]:.6g}" if c in row else "" for c in columns) for row in rows]
    return "\n".join([",".join(columns), *lines]) + "\n"
