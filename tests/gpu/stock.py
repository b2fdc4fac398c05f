"""Stock Ultralytics with the same network, data, batch and optimizer. `python -m gpu.stock CHECK [JSON]`."""

from __future__ import annotations

import sys
import time
import types
from importlib.util import find_spec
from typing import Any

from yolojob_trainer import environment

environment.prepare()

import torch  # noqa: E402 - after `prepare`
import yaml  # noqa: E402
from ultralytics.engine import trainer as upstream  # noqa: E402
from ultralytics.models.yolo.detect import DetectionTrainer  # noqa: E402
from yolojob_trainer.model.resolve import resolve  # noqa: E402

from gpu import check_process  # noqa: E402
from gpu.images import CLASSES  # noqa: E402
from gpu.loop import synchronize  # noqa: E402
from gpu.scale import cache_folder, dataset_folder, scale, work_folder  # noqa: E402
from gpu.table import Row, figure, report  # noqa: E402
from yolojob.api.spec import ModelRef  # noqa: E402

upstream.check_amp = lambda _: True  # it downloads a network to try mixed precision with


class FixedLoader:
    """Replaces a training loader: its first batch again and again."""

    def __init__(self, loader: Any, count: int) -> None:
        self.dataset, self.sampler, self.batch_size = loader.dataset, loader.sampler, loader.batch_size
        self.drop_last, self.num_workers = False, 0
        self._count = count
        self._batch = next(iter(loader))
        loader.close()

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Any:
        for _ in range(self._count):
            yield dict(self._batch)

    def reset(self) -> None: ...

    def close(self) -> None: ...


class FixedBatchTrainer(DetectionTrainer):  # type: ignore[misc]
    def get_dataloader(self, path: str, batch_size: int = 16, rank: int = 0, mode: str = "train") -> Any:
        loader = super().get_dataloader(path, batch_size, rank, mode)
        return FixedLoader(loader, scale().steps) if mode == "train" else loader


def train(kind: type[DetectionTrainer], batch: int, epochs: int, **options: Any) -> tuple[list[float], str]:
    """Train; return (seconds of the training of each epoch, peak of the allocated memory)."""
    # At every checkpoint it reads results.csv with polars, and ignores errors.
    if "polars" not in sys.modules and find_spec("polars") is None:
        sys.modules["polars"] = types.ModuleType("polars")
    seconds: list[float] = []
    starts: list[float] = []

    def start(_: Any) -> None:
        synchronize()
        starts.append(time.perf_counter())

    def end(_: Any) -> None:
        synchronize()
        seconds.append(time.perf_counter() - starts[-1])

    if scale().gpu:
        torch.cuda.reset_peak_memory_stats()
    settings = {
        "model": _network_file(),
        "data": str(dataset_folder() / "data.yaml"),
        "imgsz": scale().imgsz,
        "batch": batch,
        "epochs": epochs,
        "optimizer": "AdamW",
        "lr0": 1e-4,
        "warmup_epochs": 0,
        "close_mosaic": 0,
        "device": "0" if scale().gpu else "cpu",
        "workers": scale().loaders,
        "plots": False,
        "save": False,
        "val": False,
        "verbose": False,
        "project": str(work_folder() / "stock"),
        "exist_ok": True,
        "amp": scale().gpu,
    }
    trainer = kind(overrides={**settings, **options})
    trainer.add_callback("on_train_epoch_start", start)
    trainer.add_callback("on_train_epoch_end", end)
    trainer.final_eval = lambda: None
    trainer.train()
    return seconds, f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if scale().gpu else ""


def fixed_batch() -> list[Row]:
    """Measure one batch again and again."""
    rows: list[Row] = []
    for batch in scale().fixed_batches:
        seconds, memory = train(FixedBatchTrainer, batch, 2, cache="ram")
        rows.append(figure(f"stock b{batch}, fixed batch: img/s", f"{batch * scale().steps / seconds[-1]:.0f}", memory))
        report(rows)
    return rows


def speed(batch: int, cache: Any, workers: int) -> list[Row]:
    """Train the synthetic dataset: img/s without the first epoch."""
    seconds, memory = train(DetectionTrainer, batch, scale().epochs, cache=cache, workers=workers)
    rate = scale().images * len(seconds[1:]) / sum(seconds[1:])
    return [figure(f"stock b{batch}, cache: {cache}, {workers} loaders: img/s", f"{rate:.0f}", memory)]


def _network_file() -> str:
    """Write the network's description for stock Ultralytics; return the path."""
    model = ModelRef.model_validate(scale().network)
    source = resolve(model, volumes=work_folder(), cache=cache_folder())
    path = work_folder() / "network.yaml"
    path.write_text(yaml.safe_dump({**source.description, "nc": CLASSES}))
    return str(path)


if __name__ == "__main__":
    check_process.main(fixed_batch, speed)
