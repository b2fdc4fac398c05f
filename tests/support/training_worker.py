"""A real training process with a recorder in it. The arguments are a mode and a file:

- `gradients` writes the gradients of the first optimizer step to the file and exits.
- `first_step` writes the starting weights, which of them are trained, the first micro-batch and its loss to the file,
  and exits.
- `curves`, `samples` and `diverge` append a line for every micro-batch to FILE.RANK.
- `diverge` also sets a weight to NaN in the third step of the second epoch, as many times as YOLOJOB_TEST_DIVERGE says.

`gradients`, `first_step` and `curves` compute in double precision, so that a difference between two runs is a mistake
and not the order of additions, which twenty steps of training amplify. They do not validate, because the validator uses
single precision.

With YOLOJOB_TEST_DEVICE_CACHE `cache: gpu` keeps the images on the device also on a CPU.

YOLOJOB_TEST_HEARTBEAT_TIMEOUT and YOLOJOB_TEST_SHARED_MEMORY replace the trainer's constants. With YOLOJOB_TEST_STOP,
which is RANK,EPOCH,STEP, that rank gets SIGTERM in that step. With
YOLOJOB_TEST_MEMORY, which is a number of images, a larger micro-batch is out of memory; with YOLOJOB_TEST_FIT
this is found out before the training, as on a GPU.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import yolojob_trainer.__main__ as entry


def main() -> int:  # noqa: C901 - one branch for each variable
    import torch
    from ultralytics.utils.torch_utils import unwrap_model
    from yolojob_trainer.data import image_cache
    from yolojob_trainer.distributed import heartbeat
    from yolojob_trainer.training import trainer as module

    mode, path = sys.argv[1:]
    if mode in ("gradients", "first_step", "curves"):
        torch.set_default_dtype(torch.float64)
    if timeout := os.environ.get("YOLOJOB_TEST_HEARTBEAT_TIMEOUT"):
        heartbeat.HEARTBEAT_TIMEOUT_SECONDS = float(timeout)
    if memory := os.environ.get("YOLOJOB_TEST_SHARED_MEMORY"):
        image_cache.MEMORY = Path(memory)

    stop = tuple(int(value) for value in os.environ.get("YOLOJOB_TEST_STOP", "-1").split(","))
    images_in_memory = int(os.environ.get("YOLOJOB_TEST_MEMORY", sys.maxsize))
    fits_first = "YOLOJOB_TEST_FIT" in os.environ
    start: dict[str, Any] = {}
    divergences = list(range(int(os.environ.get("YOLOJOB_TEST_DIVERGE", "0"))))

    class Recorder(module.Trainer):
        def _build_optimizer(self) -> None:
            if fits_first:
                self.fit_memory()
            super()._build_optimizer()

        def optimizer_step(self) -> None:
            if mode == "gradients":
                if self.world.is_main:
                    named = unwrap_model(self.model).named_parameters()
                    torch.save({n: p.grad.clone() for n, p in named if p.grad is not None}, path)
                self.world.synchronize()
                os._exit(0)
            super().optimizer_step()

        def _image_cache(self, requested: bool | str) -> bool | str:
            return requested if "YOLOJOB_TEST_DEVICE_CACHE" in os.environ else super()._image_cache(requested)

        def predict(self, batch: dict[str, Any]) -> Any:
            if len(batch["img"]) > images_in_memory and (fits_first or self.optimizer is not None):
                raise torch.OutOfMemoryError("CUDA out of memory, by the test")
            if mode == "first_step":  # before the forward pass, which changes the statistics of batch norms
                network = unwrap_model(self.model)
                start["state"] = {name: tensor.clone() for name, tensor in network.state_dict().items()}
                start["trained"] = sorted(n for n, p in network.named_parameters() if p.requires_grad)
            return super().predict(batch)

        def compute_loss(self, batch: dict[str, Any], predictions: Any) -> Any:
            loss, items = super().compute_loss(batch, predictions)
            if mode == "first_step" and self.optimizer is not None:
                tensors = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
                torch.save({**start, "batch": tensors, "loss": loss.detach()}, path)
                os._exit(0)
            return loss, items

        def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
            if mode != "gradients" and self.optimizer is not None:
                names = [Path(name).name for name in batch["im_file"]]
                with Path(f"{path}.{self.world.rank}").open("a") as file:
                    file.write(json.dumps([self.epoch, self.step, names, float(batch["img"].sum())]) + "\n")
            if (self.world.rank, self.epoch, self.step) == stop and self.optimizer is not None:
                os.kill(os.getpid(), signal.SIGTERM)
            if mode == "diverge" and self.optimizer is not None and (self.epoch, self.step) == (1, 2) and divergences:
                divergences.pop()
                next(unwrap_model(self.model).parameters()).data[0] = float("nan")
            out: dict[str, Any] = super().preprocess_batch(batch)
            out["img"] = out["img"].to(torch.get_default_dtype())
            return out

        def validate(self) -> Any:
            if mode in ("samples", "diverge"):
                return super().validate()
            return ({"metrics/mAP50(B)": 0.0, "metrics/mAP50-95(B)": 0.0}, 0.0) if self.world.is_main else (None, None)

    module.Trainer = Recorder  # type: ignore[misc]
    return entry.main()
