"""The trainer's loop in this process, on one batch again and again, so that it never waits for a loader."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yolojob_trainer.__main__  # noqa: F401 - prepares the environment of Ultralytics

import torch  # isort: skip
from yolojob.api.time_parts import TimePart  # isort: skip
from yolojob_trainer.bench.bench import StepRecorder  # isort: skip
from yolojob_trainer.checkpoint.run_folder import RunFolder  # isort: skip
from yolojob_trainer.data import dataset_config, job_dataset  # isort: skip
from yolojob_trainer.distributed.world import World  # isort: skip
from yolojob_trainer.model import resolve  # isort: skip
from yolojob_trainer.observability.trace import Trace  # isort: skip
from yolojob_trainer.training.callbacks import Callback  # isort: skip
from yolojob_trainer.training.setup import TrainerInputs  # isort: skip
from yolojob_trainer.training.span import Span  # isort: skip
from yolojob_trainer.training.time_account import StartupTimes  # isort: skip
from yolojob_trainer.training.trainer import Trainer, trainer_class  # isort: skip

from gpu.scale import cache_folder, scale, work_folder  # isort: skip
from gpu.training_run import run_of, synthetic_uri  # isort: skip

WARM_UP_STEPS = 8


def settings(batch: int, amp: Any, **train: Any) -> dict[str, Any]:
    """Return spec.train of a measurement."""
    return {
        "batch": batch,
        "imgsz": scale().imgsz,
        "amp": amp,
        "epochs": 50,
        "optimizer": "AdamW",
        "lr0": 1e-4,
        "warmup_epochs": 0,
        **train,
    }


def synchronize() -> None:
    """Wait for the GPU."""
    if scale().gpu:
        torch.cuda.synchronize()


@contextmanager
def prepared_trainer(train: dict[str, Any], *, on_cpu: bool = False) -> Iterator[Trainer]:
    """Yield a trainer of the synthetic dataset, ready to train its first step."""
    run = run_of(synthetic_uri(), train)
    if on_cpu:
        run.spec.workers.gpu = None
    world = World.from_env(run.spec.workers.gpu, lambda _: None)
    folder = Path(tempfile.mkdtemp(dir=work_folder()))
    spec, cache = run.spec, cache_folder()
    located = job_dataset.locate(spec.dataset, cache=cache, volumes=folder, progress=lambda *_: None)
    boundary = job_dataset.link_boundary(spec.dataset, located, folder)
    network = resolve.resolve(spec.model, volumes=folder, cache=cache)
    split = spec.train.split or "val"
    description = dataset_config.describe(located, spec.dataset.config, split, boundary, network.task)
    run_folder = RunFolder(folder / "out", run, lambda _: None)
    inputs = TrainerInputs(
        run=run,
        world=world,
        data_config=description.write(folder / "dataset"),
        data_boundary=boundary,
        network=network,
        save_dir=run_folder.path,
        cache=cache,
        warn=lambda message: print("warning:", message),
    )
    times = StartupTimes(started=time.time(), rendezvous=0.0, staging=0.0)
    # With a trace, because a training writes one and that takes time.
    listeners: list[Callback] = [Trace(world, run_folder, 1)]
    new_trainer = trainer_class(network.task)
    trainer = new_trainer(inputs, run_folder=run_folder, callbacks=listeners, startup_times=times)
    with trainer.prepared():
        yield trainer


class FixedBatchLoop:
    """Trains steps on the first batch."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._recorder = StepRecorder()
        trainer.listeners = [*trainer.listeners, self._recorder]
        self._batches = (dict(batch) for batch in itertools.repeat(next(trainer.batches(0, 0))))
        self._boundary = 0
        trainer.set_train_mode()
        trainer.optimizer.zero_grad()
        trainer.clock.start()
        self.steps(WARM_UP_STEPS)

    def steps(self, count: int) -> tuple[float, list[Span]]:
        """Train steps; return (seconds of wall-clock time, their spans)."""
        self._recorder.take()
        synchronize()
        self.trainer.clock.start()  # otherwise the first span would begin with the time since the last call
        start = time.perf_counter()
        self.issue(count)
        self.trainer.collect_spans(wait=True)
        synchronize()
        return time.perf_counter() - start, self._recorder.take()

    def issue(self, count: int) -> None:
        """Train steps without waiting for the GPU more often than a training does."""
        trainer = self.trainer
        for _ in range(count):
            trainer.agree(self._boundary)
            self._boundary = trainer.next_step(self._batches, self._boundary)
            if trainer.step == trainer.steps:
                trainer.seek(trainer.epoch + 1, 0)
                self._boundary = 0


def milliseconds_by_phase(spans: list[Span]) -> dict[TimePart, float]:
    """Return the mean milliseconds of a step."""
    sums: dict[TimePart, float] = {}
    for span in spans:
        for phase, seconds in span.seconds.items():
            sums[phase] = sums.get(phase, 0.0) + seconds
    return {phase: 1000 * seconds / len(spans) for phase, seconds in sums.items()}
