"""An operator that watches all namespaces."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import eventually
from support.jobs import job, phase
from support.kube import Kube
from support.operator_process import Operator

pytestmark = pytest.mark.exclusive
"""This operator also reconciles the jobs of other tests."""


def test_clusterwide_operator_reads_nodes_for_devices_and_prices(kube: Kube, tmp_path: Path) -> None:
    operator = Operator(kube, tmp_path / "log", clusterwide=True)
    try:
        eventually(lambda: operator.leads, "the operator leads")
        kube.create(job("anywhere", 0, "1s"))
        phase(kube, "anywhere", "Succeeded")
        fallback = job("fallback", 0, "1s")
        fallback["spec"]["workers"]["gpu"] = {"types": ["B300"], "required": False}
        kube.create(fallback)
        phase(kube, "fallback", "Succeeded")
        assert kube.condition("fallback", "Accepted")["reason"] == "NoGpu"
        assert kube.status("fallback")["history"][0]["device"] == "CPU"
        wanted = job("wanted")
        wanted["spec"]["workers"]["gpu"] = {"types": ["A100"], "required": False}
        kube.create(wanted)
        status = phase(kube, "wanted", "Running")
        assert status["history"][0]["device"] == "GPU"
        assert status["cost"]["perHour"] == pytest.approx(2 * 21.957642 / 8), (
            "each worker uses one of the eight GPUs of a p4d.24xlarge"
        )
    finally:
        operator.stop()
