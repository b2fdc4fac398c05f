"""Compares the phases of the trainer's clock with the kernels that torch.profiler sees, and finds waits for the GPU."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from yolojob_trainer.observability.trace import phase_events

from gpu.loop import FixedBatchLoop
from gpu.scale import scale, work_folder
from gpu.table import Row, figure, verdict

PROFILED_STEPS = 4
KERNEL_CATEGORIES = ("kernel", "gpu_memcpy", "gpu_memset")
CLOCK_TOLERANCE_MICROSECONDS = 1000.0
"""Kernels that start this much before the first phase still belong to it: two clocks are compared."""
LARGE_COPY_MICROSECONDS = 100.0
KERNELS_IN_PHASES = (
    ("large copies to the GPU within h2d", ("h2d",), ("memcpy htod",), LARGE_COPY_MICROSECONDS, 0.97),
    ("gradients of convolutions within backward", ("backward",), ("wgrad", "dgrad", "bwd"), 0.0, 0.97),
    ("Adam within optimizer", ("optimizer",), ("adam",), 0.0, 0.97),
)
"""(what, phases, parts of the kernels' names, shortest kernel in microseconds, least share of the kernels' time). The
clock's phases are right to 3 %."""
OWN_MODULES = ("yolojob_trainer",)
"""Code that must not wait for the GPU within a step."""

Event = dict[str, Any]
"""Of a Chrome trace; times in microseconds."""


def compare_phases(loop: FixedBatchLoop, name: str) -> list[Row]:
    """Profile a few steps, and compare."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if scale().gpu else [])]
    with profile(activities=activities) as profiler:
        loop.steps(2)  # the profiler's own first steps are slow
        loop.trainer.clock.start()  # relates the clock to wall-clock time again
        _, spans = loop.steps(PROFILED_STEPS)
    file = Path(tempfile.mkdtemp(dir=work_folder())) / "trace.json"
    profiler.export_chrome_trace(str(file))
    trace = json.loads(file.read_text())
    phases = [e for e in phase_events(spans, trace.get("baseTimeNanoseconds", 0), 0) if e["ph"] == "X"]
    start = phases[0]["ts"] - CLOCK_TOLERANCE_MICROSECONDS
    kernels = [e for e in trace["traceEvents"] if e.get("cat") in KERNEL_CATEGORIES and "dur" in e and e["ts"] >= start]
    if not kernels:
        return [verdict(f"{name}: kernels of the profiler", "none", "none on a CPU", not scale().gpu)]
    return _compare(kernels, phases, name)


def _compare(kernels: list[Event], phases: list[Event], name: str) -> list[Row]:
    sums: Counter[str] = Counter()
    for kernel in kernels:
        sums[kernel["name"][:60]] += kernel["dur"]
    print("heaviest kernels, ms of a step:")
    for kernel_name, microseconds in sums.most_common(25):
        print(f"{microseconds / 1000 / PROFILED_STEPS:8.3f}  {kernel_name}")
    busy_by_phase: dict[str, list[float]] = {}
    for phase in phases:
        entry = busy_by_phase.setdefault(phase["name"], [0.0, 0.0])
        entry[0] += sum(overlap(kernel, phase) for kernel in kernels)
        entry[1] += phase["dur"]
    shares = " ".join(f"{key}={busy / max(length, 1e-9):.0%}" for key, (busy, length) in busy_by_phase.items())
    busy = busy_microseconds(kernels) / sum(phase["dur"] for phase in phases)
    rows = [
        figure(f"{name}: kernels of a step", len(kernels) // PROFILED_STEPS),
        figure(f"{name}: time in which the GPU works", f"{busy:.0%}"),
        figure(f"{name}: time of kernels by phase", shares),
    ]
    for what, names, parts, shortest, least in KERNELS_IN_PHASES:
        chosen = [k for k in kernels if k["dur"] >= shortest and any(part in k["name"].lower() for part in parts)]
        if not chosen:
            rows.append(verdict(f"{name}: {what}", "no such kernel", f">= {least:.0%}", False))
            continue
        inside = sum(overlap(kernel, phase) for kernel in chosen for phase in phases if phase["name"] in names)
        share = inside / sum(kernel["dur"] for kernel in chosen)
        rows.append(verdict(f"{name}: {what}", f"{share:.1%}", f">= {least:.0%}", share >= least))
    return rows


def overlap(first: Event, second: Event) -> float:
    """Return the microseconds that two events share."""
    end = min(first["ts"] + first["dur"], second["ts"] + second["dur"])
    return max(float(end - max(first["ts"], second["ts"])), 0.0)


def busy_microseconds(kernels: list[Event]) -> float:
    """Return the time in which at least one kernel runs."""
    busy, end = 0.0, float("-inf")
    for kernel in sorted(kernels, key=lambda e: e["ts"]):
        start = max(kernel["ts"], end)
        end = max(end, kernel["ts"] + kernel["dur"])
        busy += max(end - start, 0.0)
    return busy


def host_waits(loop: FixedBatchLoop, name: str) -> list[Row]:
    """Count the places of a step in which the host waits for the GPU, with torch's debug mode for it."""
    if not scale().gpu:
        return [figure(f"{name}: waits for the GPU in a step", "no GPU")]
    loop.steps(2)
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loop.issue(1)
    torch.cuda.set_sync_debug_mode("default")
    waits = [warning for warning in caught if "synchroniz" in str(warning.message).lower()]
    places = Counter(f"{Path(warning.filename).name}:{warning.lineno}" for warning in waits)
    own = [warning for warning in waits if any(module in warning.filename for module in OWN_MODULES)]
    print("waits for the GPU:", dict(places))
    most = " ".join(f"{count}×{place}" for place, count in places.most_common(6))
    own_places = sorted({f"{Path(w.filename).name}:{w.lineno}" for w in own})
    return [
        figure(f"{name}: waits for the GPU in a step", f"{len(waits)}: {most}"),
        verdict(f"{name}: of them in the trainer's own code", f"{len(own)} {own_places or ''}", "0", not own),
    ]
