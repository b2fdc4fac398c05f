"""The trainer with its instrumentation on or off: `python instrumented.py on|off`, with YOLOJOB_RUN as for a worker.

Prints a line of JSON with the training seconds of every epoch, measured outside the instrumentation.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import yolojob_trainer.__main__ as entry


def main() -> None:
    from yolojob_trainer.training import trainer as module

    seconds: list[float] = []

    class Measured(module.Trainer):
        def _setup_train(self) -> None:
            super()._setup_train()
            if sys.argv[1] == "off":
                self.listeners = []
                for name in ("mark", "end", "reduced", "start"):
                    setattr(self.clock, name, lambda *_, **__: None)
                self.clock.completed = lambda wait=False: []  # type: ignore[method-assign]

        def _train_epoch(self, batches: Any) -> None:
            began = time.perf_counter()
            super()._train_epoch(batches)
            seconds.append(time.perf_counter() - began)

    module.Trainer = Measured  # type: ignore[misc]
    code = entry.main()
    print(json.dumps({"seconds": seconds}), flush=True)
    os._exit(code)


if __name__ == "__main__":
    main()
