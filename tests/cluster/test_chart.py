"""The chart renders, its manifest is the committed one, and the API server takes all of it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from install_manifest import render
from kube import Kube
from support import ROOT
from test_placement import crds

CHART = ROOT / "helm" / "yolojob"
PRESETS = sorted((CHART / "presets").glob("*.yaml"))
MONITORING = ("podmonitors", "servicemonitors", "prometheusrules")


def test_install_yaml_is_the_chart() -> None:
    assert (ROOT / "manifests" / "install.yaml").read_text() == render(), "run `make generate`"


def test_the_cache_is_the_volume_that_the_values_name() -> None:
    """And nothing beside it: Helm lays values over the chart's own."""
    text = render("--set", "trainer.cacheVolume.hostPath.path=/var/cache/yolojob")
    deployment = next(d for d in yaml.safe_load_all(text) if d["kind"] == "Deployment")
    variables = {e["name"]: e.get("value") for e in deployment["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert json.loads(variables["YOLOJOB_CACHE_VOLUME"]) == {"hostPath": {"path": "/var/cache/yolojob"}}
    assert "YOLOJOB_CACHE_VOLUME" not in render()


def test_the_api_server_takes_it(kube: Kube) -> None:
    kube.run("create", "namespace", "yolojob-system", check=False)
    # As people apply it: without naming a namespace, for its objects belong into two.
    done = kube.run("apply", "--namespace=", "--dry-run=server", "--filename", str(ROOT / "manifests" / "install.yaml"))
    assert "deployment.apps/yolojob-operator" in done.stdout


@pytest.mark.parametrize("preset", PRESETS, ids=[p.stem for p in PRESETS])
def test_presets_render(preset: Path) -> None:
    kinds = [d["kind"] for d in yaml.safe_load_all(render("--values", str(preset)))]
    assert kinds.count("Deployment") == 1
    assert "CustomResourceDefinition" in kinds


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("watchNamespace=x", "watchNamespace"),
        ("workers.allow={root}", "hostNamespaces"),
        ("metrics.monitors.interval=often", "interval"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
    ],
)
def test_unknown_values_are_refused_by_name(value: str, words: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as error:
        render("--set", value)
    assert words in error.value.stderr


def test_one_namespace_needs_no_right_beyond_it() -> None:
    documents = list(yaml.safe_load_all(render("--set", "watchNamespaces={team}", "--set", "crds.install=false")))
    assert not [d["kind"] for d in documents if d["kind"].startswith(("Cluster", "CustomResource"))]


def monitoring(*values: str) -> list[dict[str, Any]]:
    text = render("--api-versions", "monitoring.coreos.com/v1", "--set", "networkPolicy.enabled=true", *values)
    return [
        d
        for d in yaml.safe_load_all(text)
        if d["kind"] in ("PodMonitor", "ServiceMonitor", "PrometheusRule", "NetworkPolicy")
    ]


def test_monitors_only_where_somebody_reads_them(kube: Kube) -> None:
    assert "monitoring.coreos.com" not in render()
    found = monitoring("--set", "metrics.monitors.labels.release=stack")
    assert sorted(d["kind"] for d in found) == ["NetworkPolicy", "PodMonitor", "PrometheusRule", "ServiceMonitor"]
    assert next(d for d in found if d["kind"] == "PodMonitor")["metadata"]["labels"]["release"] == "stack"
    for kind in MONITORING:
        kube.run("apply", "--server-side", "--filename", str(crds(f"monitoring.coreos.com_{kind}.yaml")))
        kube.run("wait", "--for=condition=Established", f"crd/{kind}.monitoring.coreos.com", "--timeout=30s")
    kube.run("create", "namespace", "yolojob-system", check=False)
    try:
        Kube(kube.kubeconfig, "yolojob-system").run(
            "apply", "--dry-run=server", "--filename", "-", input=yaml.safe_dump_all(found)
        )
    finally:
        kube.run("delete", "crd", *(f"{kind}.monitoring.coreos.com" for kind in MONITORING))


LABELS = 'namespace="team", job_name="digits", rank="0"'


def alert(name: str, series: dict[str, str], at: str, fires: bool, **labels: str) -> dict[str, Any]:
    """A unit test of a rule: with these series, does it fire at that moment?"""
    return {
        "interval": "1m",
        "input_series": [{"series": series_name, "values": values} for series_name, values in series.items()],
        "alert_rule_test": [
            {"eval_time": at, "alertname": name, "exp_alerts": [{"exp_labels": labels}] if fires else []},
        ],
    }


def phases(rank: int, phase: str, values: str) -> dict[str, str]:
    labels = f'namespace="team", job_name="digits", rank="{rank}"'
    return {f'yolojob_trainer_phase_seconds_sum{{{labels}, phase="{phase}"}}': values}


def steps(values: str, epoch: str) -> dict[str, str]:
    return {
        f"yolojob_trainer_steps_total{{{LABELS}}}": values,
        f"yolojob_trainer_epoch{{{LABELS}}}": epoch,
        f"yolojob_trainer_epochs_target{{{LABELS}}}": "10x60",
    }


JOB = {"namespace": "team", "job_name": "digits"}
BUSY = {f"yolojob_trainer_step_seconds_sum{{{LABELS}}}": "0+60x60"}
BOTH = {f'yolojob_trainer_epoch{{namespace="team", job_name="digits", rank="{rank}"}}': "1x60" for rank in (0, 1)}
ALERTS = {
    "operator-down": alert("YolojobOperatorDown", {"yolojob_leader": "0x20"}, "10m", True, severity="critical"),
    "operator-up": alert("YolojobOperatorDown", {"yolojob_leader": "1x20"}, "10m", False),
    "stuck": alert("YolojobNoProgress", steps("100x60", "3x60"), "40m", True, severity="warning", **JOB),
    "trains": alert("YolojobNoProgress", steps("0+10x60", "3x60"), "40m", False),
    "done": alert("YolojobNoProgress", steps("100x60", "10x60"), "40m", False),
    "restarts": alert(
        "YolojobRestartLoop",
        {'yolojob_restarts_total{namespace="team", cause="failure"}': "0+1x40"},
        "35m",
        True,
        severity="warning",
        namespace="team",
    ),
    "resized": alert(
        "YolojobRestartLoop", {'yolojob_restarts_total{namespace="team", cause="resized"}': "0+1x40"}, "35m", False
    ),
    "data-bound": alert(
        "YolojobDataBound", {**BUSY, **phases(0, "data_wait", "0+40x60")}, "40m", True, severity="info", **JOB
    ),
    "compute-bound": alert("YolojobDataBound", {**BUSY, **phases(0, "data_wait", "0+10x60")}, "40m", False),
    "straggler": alert(
        "YolojobStraggler",
        {**BOTH, **phases(0, "forward", "0+20x60"), **phases(1, "forward", "0+40x60")},
        "40m",
        True,
        severity="info",
        **JOB,
    ),
    "in-step": alert(
        "YolojobStraggler", {**BOTH, **phases(0, "forward", "0+20x60"), **phases(1, "forward", "0+22x60")}, "40m", False
    ),
}


@pytest.mark.parametrize("test", ALERTS.values(), ids=list(ALERTS))
def test_alerts_fire_when_they_should(test: dict[str, Any], tmp_path: Path) -> None:
    """By Prometheus' own tool; the words of an alert are left to people."""
    rules = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())
    for rule in rules["groups"][0]["rules"]:
        assert rule.pop("annotations").keys() == {"summary", "description"}
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    (tmp_path / "test.yaml").write_text(
        yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [test]})
    )
    done = subprocess.run(
        ["promtool", "test", "rules", "test.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
