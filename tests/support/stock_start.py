"""How trainings of Ultralytics on its own begin: a process without this project's patches.

Reads a JSON list of cases from the file in the argument. For each it starts a training, and before the first step
writes a file with the weights, which of them are trained, the number of tensors that Ultralytics says it has taken, and
the loss of a micro-batch that the training here has recorded.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from pathlib import Path
from typing import Any

import torch
from ultralytics import YOLO
from ultralytics.utils import LOGGER
from ultralytics.utils.torch_utils import unwrap_model

TRANSFERRED = re.compile(r"Transferred (\d+)/\d+ items")


class Started(Exception):
    """The training has recorded what it starts from."""


class Counter(logging.Handler):
    """Keeps the number of tensors that the log of Ultralytics reports."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.taken: int | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if match := TRANSFERRED.search(record.getMessage()):
            self.taken = int(match[1])


def start(case: dict[str, Any], counter: Counter) -> None:
    model = YOLO(case["model"])
    counter.taken = None

    def record(trainer: Any) -> None:
        network = unwrap_model(trainer.model)
        state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        trained = sorted(name for name, parameter in network.named_parameters() if parameter.requires_grad)
        trainer._model_train()  # noqa: SLF001 - as upstream does before the first step
        batch = torch.load(case["record"], weights_only=True)["batch"]
        loss, _ = network.loss(batch, network(batch["img"]))
        content = {"state": state, "trained": trained, "taken": counter.taken, "loss": loss.detach()}
        torch.save(content, case["out"])
        raise Started

    model.add_callback("on_train_start", record)
    trainer_class = model.task_map[model.task]["trainer"]
    build = trainer_class.get_model

    def seeded(self: Any, *arguments: Any, **options: Any) -> Any:
        torch.manual_seed(self.args.seed)  # Ultralytics' generator is in another state at this point
        return build(self, *arguments, **options)

    trainer_class.get_model = seeded
    try:
        model.train(
            data=case["data"], project=case["folder"], device="cpu", plots=False, verbose=False, **case["train"]
        )
    except Started:
        return
    finally:
        trainer_class.get_model = build
    raise RuntimeError(f"{case['model']}: Ultralytics ended without a first step")


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    log = Counter()
    LOGGER.setLevel(logging.INFO)
    LOGGER.addHandler(log)
    for each in json.loads(Path(sys.argv[1]).read_text()):
        start(each, log)
