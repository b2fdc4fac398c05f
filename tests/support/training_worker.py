"""A real training process for tests, with a recorder in it: `python worker.py gradients|curves|samples|diverge FILE`.

`gradients` leaves the gradients of the first optimizer step and ends; the others append a line for every micro-batch.
`diverge` breaks the loss of the second epoch's third step, as often as YOLOJOB_TEST_DIVERGE says, by a weight that is
not finite. `gradients` and `curves` compute in double precision: what is left of a difference is a mistake, not the order of
additions, which twenty steps of training blow up beyond recognition. They do not validate, for that is single precision.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import yolojob_trainer.__main__ as entry


def main() -> None:
    import torch
    from ultralytics.utils.torch_utils import unwrap_model
    from yolojob_trainer.training import trainer as module

    what, path = sys.argv[1:]
    if what in ("gradients", "curves"):
        torch.set_default_dtype(torch.float64)

    divergences = list(range(int(os.environ.get("YOLOJOB_TEST_DIVERGE", "0"))))

    class Recorder(module.Trainer):
        def optimizer_step(self) -> None:
            if what == "gradients":
                if self.world.is_main:
                    named = unwrap_model(self.model).named_parameters()
                    torch.save({n: p.grad.clone() for n, p in named if p.grad is not None}, path)
                self.world.barrier()
                os._exit(0)
            super().optimizer_step()

        def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
            if what != "gradients" and self.optimizer is not None:
                names = [os.path.basename(name) for name in batch["im_file"]]  # noqa: PTH119
                with open(f"{path}.{self.world.rank}", "a") as file:  # noqa: PTH123
                    file.write(json.dumps([self.epoch, self.step, names, float(batch["img"].sum())]) + "\n")
            if what == "diverge" and self.optimizer is not None and (self.epoch, self.step) == (1, 2) and divergences:
                divergences.pop()
                next(unwrap_model(self.model).parameters()).data[0] = float("nan")
            out: dict[str, Any] = super().preprocess_batch(batch)
            out["img"] = out["img"].to(torch.get_default_dtype())
            return out

        def validate(self) -> Any:
            if what in ("samples", "diverge"):
                return super().validate()
            return ({"metrics/mAP50(B)": 0.0, "metrics/mAP50-95(B)": 0.0}, 0.0) if self.world.is_main else (None, None)

    module.Trainer = Recorder  # type: ignore[misc]
    os._exit(entry.main())


if __name__ == "__main__":
    main()
