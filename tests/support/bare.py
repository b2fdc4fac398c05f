"""The upper limit of speed: forward, loss and backward on one fixed batch. `python bare.py JSON`, in its own
process.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def main() -> None:
    options: dict[str, Any] = json.loads(sys.argv[1])
    import torch
    from ultralytics.cfg import get_cfg
    from ultralytics.nn.tasks import DetectionModel
    from ultralytics.utils import YAML
    from yolojob_trainer.model.precision import float_predictions

    torch.manual_seed(0)
    torch.set_num_threads(options["threads"])
    model = DetectionModel(YAML.load(options["model"]), verbose=False).to(memory_format=torch.channels_last).train()
    model.args = get_cfg()
    batch, side, boxes = options["batch"], options["imgsz"], 4 * options["batch"]
    images = torch.rand(batch, 3, side, side).contiguous(memory_format=torch.channels_last)
    labels = {
        "img": images,
        "batch_idx": torch.arange(batch).repeat_interleave(4).float(),
        "cls": torch.randint(0, 10, (boxes, 1)).float(),
        "bboxes": torch.rand(boxes, 4) * 0.3 + 0.2,
    }
    seconds = []
    for _ in range(options["steps"]):
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=options["bf16"]):
            predictions = model(images)
        loss, _ = model.loss(labels, float_predictions(predictions))
        loss.sum().backward()
        seconds.append(time.perf_counter() - began)
        for parameter in model.parameters():
            parameter.grad = None
    warm = seconds[3:]
    print(json.dumps({"img/s": batch * len(warm) / sum(warm)}))


if __name__ == "__main__":
    main()
