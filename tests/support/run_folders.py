"""Writes folders of finished runs, as the trainer leaves them."""

from __future__ import annotations

import json
from pathlib import Path


def write_run(folder: Path, epochs: int = 3) -> Path:
    """Writes a run of two ranks with four steps per epoch; rank 1 computes more slowly.

    Returns:
        `folder`.
    """
    for rank in (0, 1):
        trace = folder / "trace" / f"rank-{rank}"
        trace.mkdir(parents=True)
        start = 1000.0
        for epoch in range(epochs):
            lines: list[dict[str, object]] = []
            if epoch == 0:
                lines.append({"epoch": 0, "step": 0, "start": start, "seconds": {"startup": 5.0}})
                start += 5.0
            for step in range(4):
                forward = 0.1 if rank == 0 else 0.15
                seconds = {"data_wait": 0.6, "forward": forward, "backward": 0.2, "all_reduce": 0.25 - forward}
                lines.append({"epoch": epoch, "step": step, "start": start, "images": 16, "seconds": seconds})
                start += sum(seconds.values())
            lines.append({"epoch": epoch, "step": 4, "start": start, "seconds": {"validation": 0.5}})
            start += 0.5
            path = trace / f"epoch-{epoch + 1:05d}.attempt-1.jsonl"
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = ["epoch,time,train/box_loss,metrics/mAP50(B),metrics/mAP50-95(B)"]
    rows += [f"{n},{n * 4.7},1.5,{0.3 * n},{0.2 * n}" for n in range(1, epochs + 1)]
    (folder / "results.csv").write_text("\n".join(rows) + "\n")
    return folder
