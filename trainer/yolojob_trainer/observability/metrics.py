"""Prometheus metrics of the trainer, and the HTTP server for /metrics and /progress."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, make_wsgi_app

from yolojob import http_server
from yolojob_trainer.training.span import Span

STEP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Seconds: from a fraction of a small model's step to the longest step of practical use."""
LONG_BUCKETS = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)
"""Seconds: checkpoints, validations, epochs."""
METRIC_LABELS = ("namespace", "job_name", "rank")
"""`job_name`, because Prometheus itself sets the label `job` of a target."""


class TrainerMetrics:
    """All series of one rank, with its labels bound."""

    def __init__(self, *, namespace: str, job_name: str, rank: int) -> None:
        self.registry = CollectorRegistry()
        self._labels = {"namespace": namespace, "job_name": job_name, "rank": str(rank)}

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"yolojob_trainer_{name}", text, METRIC_LABELS, registry=self.registry).labels(**self._labels)

        def counter(name: str, text: str) -> Counter:
            return Counter(f"yolojob_trainer_{name}", text, METRIC_LABELS, registry=self.registry).labels(
                **self._labels
            )

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            metric = Histogram(f"yolojob_trainer_{name}", text, METRIC_LABELS, buckets=buckets, registry=self.registry)
            return metric.labels(**self._labels)

        self._phase = Histogram(
            "yolojob_trainer_phase_seconds",
            "Time of a step by phase",
            (*METRIC_LABELS, "phase"),
            buckets=STEP_BUCKETS,
            registry=self.registry,
        )
        self.step_seconds = histogram("step_seconds", "Time of a step", STEP_BUCKETS)
        self.reduction_seconds = histogram(
            "reduction_seconds",
            "Time of reducing a step's gradients; the part that is not overlapped is phase all_reduce",
            STEP_BUCKETS,
        )
        self.epoch_seconds = histogram("epoch_seconds", "Time of an epoch without its validation", LONG_BUCKETS)
        self.validation_seconds = histogram("validation_seconds", "Time of a validation", LONG_BUCKETS)
        self.checkpoint_seconds = histogram("checkpoint_seconds", "Time of saving state and weights", LONG_BUCKETS)
        self.images = counter("images_total", "Images trained by this rank")
        self.steps = counter("steps_total", "Steps done")
        self.checkpoint_failures = counter(
            "checkpoint_failures_total", "Checkpoints and uploads that failed; the training continued"
        )
        self.epoch = gauge("epoch", "Epochs completed")
        self.epochs_target = gauge("epochs_target", "Epochs of the whole run")
        self.epoch_steps = gauge("epoch_steps", "Steps of an epoch")
        self.images_per_second = gauge("images_per_second", "Images trained per second by the whole job")
        self.loss = gauge("loss", "Sum of the loss items, mean of the epoch so far")
        self._validation = Gauge(
            "yolojob_trainer_validation_metric",
            "Metrics of the newest validation, by Ultralytics' names: mAP50-95(B), accuracy_top1",
            (*METRIC_LABELS, "metric"),
            registry=self.registry,
        )
        self.gpu_memory_peak = gauge("gpu_memory_peak_bytes", "Peak of the allocated GPU memory; 0 without a GPU")
        self.gpu_utilization = gauge(
            "gpu_utilization_ratio", "Share of the time in which the GPU computes, by NVML; 0 without a GPU"
        )
        self.staging_seconds = gauge("staging_seconds", "Time of downloading and indexing the dataset")
        self.rendezvous_seconds = gauge("rendezvous_seconds", "Waiting for the other workers before the first step")
        self.startup_seconds = gauge("startup_seconds", "Process start to first step, without rendezvous and staging")
        self.staged_bytes = gauge("staged_bytes", "Bytes of the dataset on this node, during its download")
        self.dataset_bytes = gauge("dataset_bytes", "Bytes of the dataset in total")
        self.rollbacks = gauge("rollbacks", "Number of rollbacks to a checkpoint because the loss was not finite")
        self._info = Info(
            "yolojob_trainer", "Device, precision, torch version and world size", METRIC_LABELS, registry=self.registry
        )

    def observe_step(self, span: Span) -> None:
        for phase, value in span.seconds.items():
            self._phase.labels(**self._labels, phase=phase.value).observe(value)
        self.step_seconds.observe(span.duration)
        if span.reduction is not None:
            self.reduction_seconds.observe(span.reduction)

    def observe_metric(self, name: str, value: float) -> None:
        """Set a metric of the newest validation."""
        self._validation.labels(**self._labels, metric=name).set(value)

    def describe(self, facts: dict[str, str]) -> None:
        self._info.labels(**self._labels).info(facts)


def serve(metrics: TrainerMetrics, progress: Callable[[], dict[str, Any]], port: int) -> int:
    """Serve /metrics and /progress from a thread until the process ends; return the port.

    Outside of a pod only this machine can connect.

    Raises:
        OSError: the port is in use.
    """
    metrics_app = make_wsgi_app(metrics.registry)

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/progress":
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(progress()).encode()]
        if environ["PATH_INFO"] == "/metrics":
            return metrics_app(environ, start_response)  # type: ignore[no-any-return]
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [b"Not found: use /metrics or /progress.\n"]

    host = "" if os.environ.get("KUBERNETES_SERVICE_HOST") else "127.0.0.1"
    return http_server.serve(app, host, port).server_port
