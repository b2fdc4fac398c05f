"""Speed of the loop and of the loaders, each alone. `python -m gpu.speed CHECK [JSON]`."""

from __future__ import annotations

import contextlib
import gc
import statistics
import threading
import time
from collections.abc import Iterator
from typing import Any

from gpu.loop import FixedBatchLoop, milliseconds_by_phase, prepared_trainer, settings, synchronize  # first

import pynvml  # isort: skip
import torch  # isort: skip
from ultralytics.cfg import get_cfg  # isort: skip
from ultralytics.data import build_dataloader, build_yolo_dataset  # isort: skip
from ultralytics.utils.torch_utils import unwrap_model  # isort: skip
from yolojob.api.measurement import ModelProfile  # isort: skip
from yolojob.catalogue import machines  # isort: skip
from yolojob.estimation import roofline as estimation  # isort: skip
from yolojob_trainer.bench.power import PowerMeter  # isort: skip
from yolojob_trainer.model.profile import profile_model  # isort: skip
from yolojob_trainer.training.trainer import Trainer  # isort: skip

from gpu import check_process, profiling  # isort: skip
from gpu.scale import scale  # isort: skip
from gpu.table import Row, failure, figure, report, verdict, within  # isort: skip

ACCOUNTED = (0.97, 1.03)
"""Range of the phases' share of the wall clock."""
MEMORY_RATIO = (0.9, 1.5)
"""Range of predicted divided by allocated memory: a job that was promised to fit must not run out of memory."""
ROOFLINE_RATIO = (1 / estimation.PREDICTED_ERROR_FACTOR, estimation.PREDICTED_ERROR_FACTOR)
"""Range of predicted divided by measured time."""
MAX_INSTRUMENTATION_COST = 0.03
WARM_UP_SHARE = 0.4
"""Time before the measurement of a loader, as a share of the measurement."""
POWER_INTERVAL_SECONDS = 0.02
DEFAULT = "default"


def fixed_batch() -> list[Row]:
    """Measure each batch size and number format on one batch: speed, phases, memory, power, prediction."""
    rows: list[Row] = []
    for number, batch in enumerate(scale().fixed_batches):
        for amp in ("bf16", "fp16") if scale().gpu else (False,):
            name = f"ours b{batch} {amp or 'fp32'}, fixed batch"
            try:
                rows += _fixed_batch(name, batch, amp, in_detail=number == 0 and amp != "fp16")
            except Exception as error:  # noqa: BLE001 - the other figures count
                rows.append(failure(name, error))
            _free_memory()
            report(rows)
    return rows


def _fixed_batch(name: str, batch: int, amp: Any, *, in_detail: bool) -> list[Row]:
    if scale().gpu:
        torch.cuda.reset_peak_memory_stats()
    with prepared_trainer(settings(batch, amp, cache="ram")) as trainer:
        loop = FixedBatchLoop(trainer)
        power = PowerSamples(trainer.device)
        seconds, spans = loop.steps(scale().steps)
        watts = power.stop()
        step = seconds / scale().steps
        share = sum(span.duration for span in spans) / seconds
        phases = " ".join(f"{part.value}={value:.1f}" for part, value in milliseconds_by_phase(spans).items())
        rows = [
            figure(f"{name}: img/s", f"{batch / step:.0f}"),
            figure(f"{name}: ms of a step by phase", phases),
            within(f"{name}: phases, of the wall clock", share, ACCOUNTED),
            figure(f"{name}: W by energy counter / by samples", watts),
        ]
        if scale().gpu and amp == "bf16":
            rows += _memory_and_roofline(trainer, name, batch, step)
        if in_detail:
            rows += [
                *profiling.host_waits(loop, name),
                *profiling.compare_phases(loop, name),
                _instrumentation_cost(loop, name),
            ]
    return rows


def _free_memory() -> None:
    gc.collect()
    if scale().gpu:
        torch.cuda.empty_cache()


class PowerSamples:
    """Mean power by the trainer's meter and by NVML's momentary power, from construction until `stop`."""

    def __init__(self, device: torch.device) -> None:
        self._meter = PowerMeter(device, 1)
        self._samples: list[float] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        if device.type == "cuda":
            self._thread.start()

    def _sample(self) -> None:
        pynvml.nvmlInit()
        gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
        while not self._ended.wait(POWER_INTERVAL_SECONDS):
            with contextlib.suppress(pynvml.NVMLError):
                self._samples.append(pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000)

    def stop(self) -> str:
        energy = self._meter.stop()
        self._ended.set()
        by_samples = f"{statistics.fmean(self._samples):.0f}" if self._samples else "no samples"
        return f"{f'{energy.watts:.0f}' if energy else 'no counter'} / {by_samples}"


def _memory_and_roofline(trainer: Trainer, name: str, batch: int, step: float) -> list[Row]:
    """Compare memory and time with their predictions."""
    allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    profile = profile_model(unwrap_model(trainer.model), scale().imgsz, trainer.dtype, trainer.optimizer)
    ratio = profile.memory(batch) / allocated
    sizes = " / ".join(f"{size / 2**30:.2f}" for size in (profile.memory(batch), allocated, reserved))
    return [
        figure(f"{name}: GiB predicted / allocated / reserved", sizes),
        within(f"{name}: memory predicted, of allocated", ratio, MEMORY_RATIO),
        figure(f"{name}: GFLOP, MB kept, of an image", f"{profile.gflops:.1f}, {profile.activation_bytes / 1e6:.0f}"),
        _roofline(trainer, profile, name, batch, step),
    ]


def _roofline(trainer: Trainer, profile: ModelProfile, name: str, batch: int, step: float) -> Row:
    accelerators = machines.builtin().accelerators
    device = torch.cuda.get_device_name(0)
    kinds = [kind for kind in accelerators if kind in device.replace(" ", "")]
    if not kinds:
        return figure(f"{name}: roofline", f"{device} is not in the catalogue")
    gpu = accelerators[max(kinds, key=len)]
    spec = trainer.run.spec
    at_peak, assumed = (estimation.pass_seconds(spec, profile, batch, gpu, efficiency) for efficiency in (1.0, None))
    predicted = assumed + estimation.STEP_OVERHEAD_SECONDS
    low, high = ROOFLINE_RATIO
    return verdict(
        f"{name}: roofline ms at peak / predicted / measured",
        f"{1000 * at_peak:.1f} / {1000 * predicted:.1f} / {1000 * step:.1f}",
        f"predicted over measured {low} to {high}",
        low <= predicted / step <= high,
    )


def _instrumentation_cost(loop: FixedBatchLoop, name: str) -> Row:
    """Compare steps with and without marks and listeners; each twice, the shorter time counts."""
    trainer, count = loop.trainer, scale().steps // 2
    listeners, clock = trainer.listeners, trainer.clock
    best = {True: float("inf"), False: float("inf")}
    for instrumented in (True, False, True, False):
        if not instrumented:
            trainer.listeners = []
            for method in ("mark", "end"):
                setattr(clock, method, lambda *_, **__: None)
            clock.completed = lambda wait=False: []  # type: ignore[method-assign]
        seconds, _ = loop.steps(count)
        best[instrumented] = min(best[instrumented], seconds)
        if not instrumented:
            trainer.listeners = listeners
            for method in ("mark", "end", "completed"):
                delattr(clock, method)
            clock.start()
    cost = best[True] / best[False] - 1
    what, value = f"{name}: cost of the account of time", f"{cost:+.1%}"
    if not scale().gpu:  # the steps are too short
        return figure(what, value)
    return verdict(what, value, f"< {MAX_INSTRUMENTATION_COST:.0%}", cost < MAX_INSTRUMENTATION_COST)


def variants() -> list[Row]:
    """Measure other settings on one batch, compared with the default in this process."""
    batch = scale().fixed_batches[0]
    amp: Any = "bf16" if scale().gpu else False
    candidates: dict[str, dict[str, Any]] = {
        DEFAULT: {},
        "fp16": {"amp": "fp16" if scale().gpu else False},
        "deterministic: false": {"deterministic": False},
        "channels_last: false": {"channels_last": False},
        "optimizer: MuSGD": {"optimizer": "MuSGD"},
        "cache: gpu": {"cache": "gpu"},
    }
    rows: list[Row] = []
    default = float("nan")
    for name, changes in candidates.items():
        try:
            with prepared_trainer(settings(batch, amp, cache="ram") | changes) as trainer:
                rate = batch * scale().steps / FixedBatchLoop(trainer).steps(scale().steps)[0]
        except Exception as error:  # noqa: BLE001 - the other figures count
            rows.append(failure(f"b{batch}, {name}", error))
            continue
        if name == DEFAULT:
            default = rate
        rows.append(figure(f"b{batch}, {name}: img/s", f"{rate:.0f}", f"{rate / default:.2f} of the default"))
        report(rows)
        _free_memory()
    return rows


def compiled() -> list[Row]:
    """Measure torch.compile: the set-up and the first steps, in which it compiles, and the speed afterwards."""
    batch = scale().fixed_batches[0]
    seconds: dict[bool, float] = {}
    rates: dict[bool, float] = {}
    for uses_compiler in (False, True):
        start = time.perf_counter()
        train = settings(batch, "bf16" if scale().gpu else False, cache="ram", compile=uses_compiler)
        with prepared_trainer(train) as trainer:
            loop = FixedBatchLoop(trainer)
            seconds[uses_compiler] = time.perf_counter() - start
            rates[uses_compiler] = batch * scale().steps / loop.steps(scale().steps)[0]
        _free_memory()
    return [
        figure(
            f"ours b{batch} compiled, fixed batch: img/s",
            f"{rates[True]:.0f}",
            f"{rates[True] / rates[False]:.2f} of not compiled",
        ),
        figure("seconds of set-up and first steps, compiled / not", f"{seconds[True]:.0f} / {seconds[False]:.0f}"),
    ]


def loaders() -> list[Row]:
    """Measure the loaders alone, ours and stock's, with all cores."""
    batch, processes = scale().training_batches[0], scale().loaders
    rows: list[Row] = []
    rates: dict[str, float] = {}
    for name, cache in (("not cached", False), ("cache: ram", "ram"), ("cache: gpu", "gpu")):
        with prepared_trainer(settings(batch, "auto", cache=cache, workers=processes)) as trainer:
            on_device = trainer.images is not None
            batches = map(trainer.to_device, trainer.batches(0, 0)) if on_device else trainer.batches(0, 0)
            rates[name] = _images_per_second(batches, batch)
            if cache is False:
                rates["stock"] = _images_per_second(_stock_batches(trainer, batch, processes), batch)
            actual = f"cache {trainer.execution.cache}, {trainer.execution.workers} processes"
        what = "samples on the device" if on_device else "batches in memory"
        rows.append(
            figure(
                f"loaders, {name} ({actual}): img/s",
                f"{rates[name]:.0f} {what}",
                f"{rates[name] / rates['stock']:.2f} of stock's {rates['stock']:.0f}, not cached",
            )
        )
        report(rows)
    return rows


def _stock_batches(trainer: Trainer, batch: int, processes: int) -> Iterator[Any]:
    arguments = get_cfg(overrides={"task": "detect", "imgsz": scale().imgsz})
    dataset = build_yolo_dataset(arguments, trainer.data["train"], batch, trainer.data, mode="train", stride=32)
    loader = build_dataloader(dataset, batch, processes, shuffle=True, device=trainer.device)
    while True:
        yield from loader


def _images_per_second(batches: Iterator[Any], batch: int) -> float:
    """Return the rate of batches after a warm-up."""
    warm = time.perf_counter() + scale().loading_seconds * WARM_UP_SHARE
    next(batches)
    while time.perf_counter() < warm:
        next(batches)
    synchronize()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < scale().loading_seconds:
        next(batches)
        count += 1
    synchronize()
    return count * batch / (time.perf_counter() - start)


if __name__ == "__main__":
    check_process.main(fixed_batch, variants, compiled, loaders)
