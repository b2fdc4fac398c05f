"""Whole trainings in processes of their own, and what happens to them. `python -m gpu.trainings CHECK [JSON]`."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from gpu import check_process
from gpu.scale import cache_folder, scale, work_folder
from gpu.table import Row, figure, verdict, within
from gpu.training_run import TrainingRun, run_of, synthetic_uri
from yolojob.api.constants import ExitCode
from yolojob.api.run import Run
from yolojob.api.time_parts import TimePart

STOP_SECONDS = 25.0
"""A pod has 30 s to end after SIGTERM, by default."""
PEER_LOST_SECONDS = 20.0
ACCOUNT_OF_WALL_CLOCK = (0.93, 1.02)
"""Range of the account's share of the process's life; the exit is no part of it."""
LEARNT_MAP50 = 0.1
"""An untrained network has less than 0.01."""
NORM_TOLERANCE = 1e-3
"""Relative difference of the norm of the first step's gradients: the order of additions differs."""
LOSS_TOLERANCE = 1e-2
"""Relative difference of the first epoch's losses: Adam amplifies the difference of small gradients."""


def digits(epochs: int, amp: Any = "auto", *, train: dict[str, Any] | None = None, **spec: Any) -> Run:
    """Return a training of real handwritten digits, small and good enough to see whether something is learnt."""
    size = scale()
    settings = {
        "batch": 32,
        "imgsz": size.digits_imgsz,
        "fraction": size.digits_fraction,
        "epochs": epochs,
        "amp": amp if size.gpu else False,
        "optimizer": "AdamW",
        "lr0": 0.004,
        "mosaic": 0.0,
        "fliplr": 0.0,
        "workers": 2 if size.gpu else 0,
        "seed": 0,
        **(train or {}),
    }
    return run_of("builtin://digits", settings, size.digits_network, **spec)


def learn(amp: Any = "auto", cache: Any = False) -> list[Row]:
    """Train in a number format: something is learnt, and the account of time covers the process's life."""
    size = scale()
    name = f"digits {amp or 'fp32'}{f', cache: {cache}' if cache else ''}"
    run = digits(size.digits_epochs, amp, train={"cache": cache})
    training = TrainingRun(run, work_folder() / f"learn-{amp or 'fp32'}-{cache}").start()
    code = training.wait()
    if code != 0:
        return [training.failure(name, code)]
    report = training.report()
    share = sum(report.timing.parts.values()) / training.seconds
    reached = report.result.map50 if report.result and report.result.map50 else 0.0
    learnt = f"{name}: mAP50 after {size.digits_epochs} epochs"
    return [
        figure(f"{name}: device, precision", f"{report.device}, {report.precision}"),
        verdict(learnt, f"{reached:.3f}", f">= {LEARNT_MAP50}", reached >= LEARNT_MAP50)
        if size.gpu
        else figure(learnt, f"{reached:.3f}"),
        within(f"{name}: account of the wall clock", share, ACCOUNT_OF_WALL_CLOCK),
        figure(f"{name}: warnings", "; ".join(report.warnings)[:100] or "none"),
    ]


def resume(signal_name: str) -> list[Row]:
    """Stop a training by a signal, start it again, and look whether an epoch is missing."""
    epochs = 6 if scale().gpu else 3
    run = digits(epochs, checkpoint={"everyEpochs": 1, "everySeconds": 1})
    training = TrainingRun(run, work_folder() / f"resume-{signal_name}").start()
    if not training.has_written("checkpoints/*.pt", 2):
        return [training.failure(f"{signal_name}: two checkpoints", training.wait(1))]
    rows = []
    if signal_name == "SIGKILL":
        training.kill()
    else:
        start = time.monotonic()
        os.kill(training.process.pid, signal.Signals[signal_name])
        limit = STOP_SECONDS * scale().patience
        code = training.wait(2 * limit)
        seconds = time.monotonic() - start
        ended = code == ExitCode.INTERRUPTED and seconds < limit
        expected = f"{ExitCode.INTERRUPTED.value}, < {limit:.0f}"
        rows.append(verdict(f"{signal_name}: exit code, seconds", f"{code}, {seconds:.1f}", expected, ended))
    code = training.start().wait()
    if code != 0:
        return [*rows, training.failure(f"{signal_name}: resume", code)]
    resumed = training.report().resumed_from
    numbers = [int(row["epoch"]) for row in training.results()]
    return [
        *rows,
        verdict(f"{signal_name}: resumed from", resumed, "an epoch", bool(resumed)),
        verdict(f"{signal_name}: epochs in results.csv", numbers, f"1 to {epochs}", numbers == [*range(1, epochs + 1)]),
        opens_in_ultralytics(f"{signal_name}: best.pt", training.output),
    ]


def opens_in_ultralytics(name: str, output: Path) -> Row:
    """Predict with a run's best.pt in stock Ultralytics."""
    from ultralytics import YOLO

    image = next((cache_folder() / "datasets").rglob("*.png"))
    model = YOLO(str(output / "weights" / "best.pt"))
    found = model.predict(
        str(image), device=0 if scale().gpu else "cpu", imgsz=scale().digits_imgsz, verbose=False, save=False
    )
    return verdict(f"{name}: predictions in Ultralytics", len(found), "1", len(found) == 1)


def diverge() -> list[Row]:
    """A weight becomes NaN: the training goes back to the last checkpoint, and ends with finite losses."""
    run = digits(3, checkpoint={"everyEpochs": 1})
    training = TrainingRun(run, work_folder() / "diverge", port=29605, conditions={"GPU_CHECKS_DIVERGE": "1"}).start()
    code = training.wait()
    if code != 0:
        return [training.failure("NaN", code)]
    warnings = [text for text in training.report().warnings if "not finite" in text]
    numbers = [int(row["epoch"]) for row in training.results()]
    return [
        verdict("NaN: rollbacks", len(warnings), "1", len(warnings) == 1),
        verdict("NaN: epochs in results.csv", numbers, "1 to 3", numbers == [1, 2, 3]),
    ]


def ranks() -> list[Row]:
    """One rank, one rank with NCCL and DDP, and two ranks on the one GPU have the same losses."""
    elastic = {"elastic": {"minReplicas": 1, "maxReplicas": 2}}
    one, pair = digits(3, False, **elastic), digits(3, False, workers={"replicas": 2}, **elastic)
    folder = work_folder()
    trainings = {
        "one rank": [TrainingRun(one, folder / "one-rank", port=29601, conditions={})],
        "one rank, NCCL and DDP": [
            TrainingRun(one, folder / "nccl", port=29602, conditions={"GPU_CHECKS_BACKEND": "nccl"})
        ],
        "two ranks": [
            TrainingRun(
                pair,
                folder / "two-ranks",
                rank=rank,
                world_size=2,
                port=29603,
                conditions={"GPU_CHECKS_BACKEND": "gloo"},
            )
            for rank in (0, 1)
        ],
    }
    for training in (training for gang in trainings.values() for training in gang):
        training.start()
    codes = {name: [training.wait() for training in gang] for name, gang in trainings.items()}
    rows: list[Row] = []
    for name, gang in trainings.items():
        if any(code != 0 for code in codes[name]):
            rows += [
                training.failure(name, code) for training, code in zip(gang, codes[name], strict=True) if code != 0
            ]
        elif name == "one rank":
            rows.append(figure(f"{name}: norm of the first gradients", f"{gang[0].first_norm():.5g}"))
        elif not any(codes["one rank"]):
            rows += _compare(name, gang[0], trainings["one rank"][0])
    return rows


def _compare(name: str, training: TrainingRun, reference: TrainingRun) -> list[Row]:
    """Compare a training with that of one rank."""
    norm = training.first_norm() / reference.first_norm() - 1
    loss = _losses(training)[0] / _losses(reference)[0] - 1
    timing = training.report().timing
    reduction = f"{timing.all_reduce_with_overlap_seconds}, {timing.training_seconds.get('all_reduce')}"
    return [
        verdict(
            f"{name}: norm of the first gradients, difference",
            f"{norm:.1e}",
            f"< {NORM_TOLERANCE}",
            abs(norm) < NORM_TOLERANCE,
        ),
        verdict(
            f"{name}: loss of the first epoch, difference",
            f"{loss:.1e}",
            f"< {LOSS_TOLERANCE}",
            abs(loss) < LOSS_TOLERANCE,
        ),
        verdict(
            f"{name}: seconds of all-reduce, not overlapped",
            reduction,
            "measured",
            bool(timing.all_reduce_with_overlap_seconds),
        ),
    ]


def _losses(training: TrainingRun) -> list[float]:
    """Return the sum of the training losses of each epoch."""
    return [sum(float(v) for k, v in row.items() if k.startswith("train/")) for row in training.results()]


def lost_peer() -> list[Row]:
    """One of two ranks is killed: the other one ends by itself with the code for it."""
    run = digits(200, False, workers={"replicas": 2}, checkpoint={"everySeconds": 1})
    survivor, victim = (
        TrainingRun(
            run,
            work_folder() / "lost-peer",
            rank=rank,
            world_size=2,
            port=29604,
            conditions={"GPU_CHECKS_BACKEND": "gloo"},
        ).start()
        for rank in (0, 1)
    )
    if not survivor.has_written("checkpoints/*.pt", 1):
        survivor.kill()
        victim.kill()
        return [survivor.failure("lost peer: a checkpoint", None)]
    start = time.monotonic()
    victim.kill()
    code = survivor.wait()
    seconds = time.monotonic() - start
    limit = PEER_LOST_SECONDS * scale().patience
    passed = code == ExitCode.PEER_LOST and seconds < limit
    expected = f"{ExitCode.PEER_LOST.value}, < {limit:.0f}"
    return [verdict("lost peer: exit code of the other rank, seconds", f"{code}, {seconds:.1f}", expected, passed)]


def out_of_memory(share: float) -> list[Row]:
    """A batch does not fit into a share of the GPU's memory: its microbatches are split, and the training succeeds.

    Without a GPU the check only trains: torch has no limit for the memory of a CPU.
    """
    size = scale()
    batch = max(size.training_batches)
    train: dict[str, Any] = {"batch": batch, "imgsz": size.imgsz, "epochs": 1, "workers": 2 if size.gpu else 0}
    train |= {"val": False, "fraction": float(min(size.images, 2 * batch)), "optimizer": "AdamW"}
    conditions = {"GPU_CHECKS_MEMORY": str(share)} if size.gpu else {}
    training = TrainingRun(
        run_of(synthetic_uri(), train), work_folder() / "out-of-memory", port=29606, conditions=conditions
    ).start()
    code = training.wait()
    if code != 0:
        return [training.failure("out of memory", code)]
    splits = [text for text in training.report().warnings if "out of GPU memory" in text]
    expected = "at least 1" if size.gpu else "0 on a CPU"
    return [verdict("out of memory: splits of the microbatches", len(splits), expected, bool(splits) == size.gpu)]


def speed(batch: int, cache: Any, workers: int) -> list[Row]:
    """Train the synthetic dataset as a user does: img/s without the first epoch, and the phases."""
    size = scale()
    train = {
        "batch": batch,
        "imgsz": size.imgsz,
        "epochs": size.epochs,
        "cache": cache,
        "workers": workers,
        "val": False,
        "optimizer": "AdamW",
        "lr0": 1e-4,
        "warmup_epochs": 0,
        "close_mosaic": 0,
    }
    name = f"ours b{batch}, cache: {cache}, {workers} loaders"
    training = TrainingRun(run_of(synthetic_uri(), train), work_folder() / f"speed-{batch}-{cache}-{workers}").start()
    code = training.wait()
    if code != 0:
        return [training.failure(name, code)]
    steps = [span["seconds"] for span in training.spans() if span["epoch"] > 0 and "images" in span]
    seconds = {part: sum(step.get(part.value, 0.0) for step in steps) for part in TimePart}
    rate = size.images * (size.epochs - 1) / sum(seconds.values())
    phases = " ".join(f"{part.value}={1000 * value / len(steps):.1f}" for part, value in seconds.items() if value)
    return [
        figure(f"{name}: img/s", f"{rate:.0f}", "; ".join(training.report().warnings)[:100]),
        figure(f"{name}: ms of a step by phase", phases),
    ]


def bench() -> list[Row]:
    """Measure a job as `yolojob bench` does."""
    size = scale()
    batch = size.training_batches[0]
    train = {"batch": batch, "imgsz": size.imgsz, "epochs": 20, "cache": "ram", "workers": size.loaders}
    training = TrainingRun(run_of(synthetic_uri(), train), work_folder() / "bench")
    training.environment |= {"YOLOJOB_MODE": "bench", "YOLOJOB_BENCH_SECONDS": "12" if size.gpu else "2"}
    code = training.start().wait()
    if code != 0:
        return [training.failure("bench", code)]
    measured = training.report().measurement
    assert measured is not None
    step = sum(measured.steps[0].seconds.values()) + measured.update_seconds
    passes = " ".join(f"{p.images}:{1000 * p.seconds:.1f}" for p in measured.microbatch_passes)
    rates = measured.rates
    return [
        figure("bench: seconds, img/s", f"{measured.took_seconds:.0f}, {batch / step:.0f}"),
        figure("bench: ms of passes by images", passes),
        figure("bench: samples and images decoded by a core", f"{rates.samples_per_core}, {rates.decoded_per_core}"),
        verdict("bench: power", measured.energy, "by NVML", bool(measured.energy))
        if size.gpu
        else figure("bench: power", "no GPU"),
        figure(
            "bench: seconds of validation, checkpoint", f"{measured.validation_seconds}, {measured.checkpoint_seconds}"
        ),
    ]


def tune() -> list[Row]:
    """Let spec.tuning choose the execution settings."""
    size = scale()
    train = {"batch": size.training_batches[0], "imgsz": size.imgsz, "epochs": 50, "workers": size.loaders}
    tuning = {"mode": "Auto", "maxSeconds": 45 if size.gpu else 10}
    training = TrainingRun(run_of(synthetic_uri(), train, tuning=tuning), work_folder() / "tune")
    training.environment["YOLOJOB_MODE"] = "tune"
    code = training.start().wait()
    if code != 0:
        return [training.failure("tuning", code)]
    report = training.report().tuning
    assert report is not None
    chosen = " ".join(f"{name}={value}" for name, value in report.chosen.items())
    rows = [figure("tuning: chosen", chosen)]
    for trial in report.trials:
        rate = f"{trial.images_per_second:.0f} img/s: " if trial.images_per_second else ""
        rows.append(figure(f"tuning: {trial.settings}", f"{rate}{trial.verdict}"))
    return rows


if __name__ == "__main__":
    check_process.main(learn, resume, diverge, ranks, lost_peer, out_of_memory, speed, bench, tune)
