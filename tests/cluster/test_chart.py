"""The Helm chart: it renders, the committed manifests are current, and the API server accepts them."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chart_readme
import pytest
import yaml
from devcluster import settings
from generate import RENDERED
from rendered_chart import CHART, VARIANTS, render
from support import ROOT, eventually
from support.crds import crds
from support.kube import Kube

from yolojob.api.manifest import parse

PRESETS = sorted((CHART / "presets").glob("*.yaml"))
MONITORING = ("podmonitors", "servicemonitors", "prometheusrules")


@pytest.mark.parametrize("path", RENDERED, ids=lambda p: p.name)
def test_committed_file_is_what_the_chart_renders(path: Path) -> None:
    assert path.read_text() == RENDERED[path](), "run `make generate`"


def test_schema_describes_exactly_the_values_of_the_chart() -> None:

    def paths(schema: dict[str, Any], prefix: str = "") -> set[str]:
        leaves: set[str] = set()
        for name, inner in schema.get("properties", {}).items():
            leaves |= paths(inner, f"{prefix}{name}.") or {f"{prefix}{name}"}
        return leaves

    schema = paths(json.loads((CHART / "values.schema.json").read_text())) - {"global", "imagePullSecrets.name"}
    assert schema == {path for path, default, _ in chart_readme.values() if default is not None}


def test_artifact_hub_annotations_match_the_chart() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    notes = {k.partition("/")[2]: v for k, v in chart["annotations"].items()}
    crd = yaml.safe_load((CHART / "files" / "crd.yaml").read_text())
    (shown,) = yaml.safe_load(notes["crds"])
    assert (shown["kind"], shown["name"]) == (crd["spec"]["names"]["kind"], crd["metadata"]["name"])
    assert shown["version"] in [v["name"] for v in crd["spec"]["versions"]]
    for example in yaml.safe_load(notes["crdsExamples"]):
        parse(example)
    images = {i["image"] for i in yaml.safe_load(notes["images"])}
    assert images == {f"yolojob/{name}:{chart['appVersion']}" for name in ("operator", "trainer")}


def test_helm_lint_of_defaults_and_presets_finds_no_fault() -> None:
    helm = shutil.which("helm") or str(settings.BIN / "helm")
    for preset in ([], *(["--values", str(p)] for p in PRESETS)):
        done = subprocess.run(
            [helm, "lint", "--strict", str(CHART), *preset], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def schemas(kube: Kube, folder: Path) -> None:
    """Write the API server's schemas for kubeconform: one strict file for each kind."""
    definitions = json.loads(kube.run("get", "--raw", "/openapi/v2").stdout)["definitions"]
    for name, definition in definitions.items():
        if definition.get("format") == "int-or-string":
            definition["type"] = ["string", "integer"]
        if name.endswith(".Quantity"):
            definition["type"] = ["string", "number"]
        if "properties" in definition and "additionalProperties" not in definition:
            definition["additionalProperties"] = False
        for kind in definition.get("x-kubernetes-group-version-kind", []):
            group = kind["group"].partition(".")[0]
            suffix = f"-{group}-{kind['version']}" if group else f"-{kind['version']}"
            reference = {"$ref": f"definitions.json#/definitions/{name}"}
            (folder / f"{kind['kind'].lower()}{suffix}.json").write_text(json.dumps(reference))
    (folder / "definitions.json").write_text(json.dumps({"definitions": definitions}))


def kubeconform(kube: Kube, folder: Path, manifests: str) -> subprocess.CompletedProcess[str]:
    """Validate manifests strictly against the schemas of a real API server: an unknown field is a fault."""
    schemas(kube, folder)
    tool = shutil.which("kubeconform") or str(settings.BIN / "kubeconform")
    location = f"{folder}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"
    command = [tool, "-strict", "-summary", "-schema-location", location, "-"]
    return subprocess.run(command, input=manifests, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [(), *VARIANTS.values()], ids=["defaults", *VARIANTS])
def test_kubeconform_of_the_rendered_chart_finds_no_fault(
    kube: Kube, monitoring_kinds: None, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    done = kubeconform(kube, tmp_path, render(*arguments))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Skipped: 0" in done.stdout


def test_kubeconform_of_a_misspelt_field_finds_a_fault(kube: Kube, tmp_path: Path) -> None:
    done = kubeconform(kube, tmp_path, render().replace("serviceAccountName:", "serviceAccountNames:"))
    assert done.returncode == 1
    assert "serviceAccountNames" in done.stdout


def test_cache_volume_is_exactly_the_value() -> None:
    """Helm merges values into the chart's own, so nothing of the default may remain."""
    text = render("--set", "trainer.cacheVolume.hostPath.path=/var/cache/yolojob")
    deployment = next(d for d in yaml.safe_load_all(text) if d["kind"] == "Deployment")
    variables = {e["name"]: e.get("value") for e in deployment["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert json.loads(variables["YOLOJOB_CACHE_VOLUME"]) == {"hostPath": {"path": "/var/cache/yolojob"}}
    assert "YOLOJOB_CACHE_VOLUME" not in render()


def test_api_server_accepts_the_install_manifest(kube: Kube) -> None:
    kube.run("create", "namespace", "yolojob-system", check=False)
    # As users apply it: without a namespace, because its objects belong to two.
    done = kube.run("apply", "--namespace=", "--dry-run=server", "--filename", str(ROOT / "manifests" / "install.yaml"))
    assert "deployment.apps/yolojob-operator" in done.stdout


@pytest.mark.parametrize("preset", PRESETS, ids=[p.stem for p in PRESETS])
def test_preset_renders_one_deployment_and_the_crd(preset: Path) -> None:
    kinds = [d["kind"] for d in yaml.safe_load_all(render("--values", str(preset)))]
    assert kinds.count("Deployment") == 1
    assert "CustomResourceDefinition" in kinds


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("watchNamespace=x", "watchNamespace"),
        ("workers.allow={root}", "hostNamespaces"),
        ("metrics.monitors.interval=often", "interval"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
    ],
)
def test_invalid_value_is_rejected_by_name(value: str, name: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as error:
        render("--set", value)
    assert name in error.value.stderr


def test_chart_for_one_namespace_has_no_cluster_roles() -> None:
    documents = list(yaml.safe_load_all(render("--set", "watchNamespaces={team}", "--set", "crds.install=false")))
    assert not [d["kind"] for d in documents if d["kind"].startswith(("Cluster", "CustomResource"))]


def monitoring(*values: str) -> list[dict[str, Any]]:
    text = render("--api-versions", "monitoring.coreos.com/v1", *values)
    return [
        d
        for d in yaml.safe_load_all(text)
        if d["kind"] in ("PodMonitor", "ServiceMonitor", "PrometheusRule", "NetworkPolicy")
    ]


@pytest.fixture(scope="module")
def monitoring_kinds(kube: Kube) -> Iterator[None]:
    """Installs the CRDs of the Prometheus operator."""
    for kind in MONITORING:
        kube.run("apply", "--server-side", "--filename", str(crds(f"monitoring.coreos.com_{kind}.yaml")))
        kube.wait_for_crd(f"{kind}.monitoring.coreos.com")

    def described() -> bool:
        known = kube.run("get", "--raw", "/openapi/v2").stdout.lower()
        return all(f"com.coreos.monitoring.v1.{kind[:-1]}" in known for kind in MONITORING)

    eventually(described, "the API server publishes their schemas", seconds=60)
    yield
    kube.run("delete", "crd", *(f"{kind}.monitoring.coreos.com" for kind in MONITORING))


def test_monitors_are_rendered_only_with_the_prometheus_operator(kube: Kube, monitoring_kinds: None) -> None:
    assert "monitoring.coreos.com" not in render()
    documents = monitoring("--set", "metrics.monitors.labels.release=stack")
    assert sorted(d["kind"] for d in documents) == ["NetworkPolicy", "PodMonitor", "PrometheusRule", "ServiceMonitor"]
    assert next(d for d in documents if d["kind"] == "PodMonitor")["metadata"]["labels"]["release"] == "stack"
    kube.run("create", "namespace", "yolojob-system", check=False)
    Kube(kube.kubeconfig, "yolojob-system").run(
        "apply", "--dry-run=server", "--filename", "-", input=yaml.safe_dump_all(documents)
    )


LABELS = 'namespace="team", job_name="digits", rank="0"'


def alert(name: str, series: dict[str, str], at: str, fires: bool, **labels: str) -> dict[str, Any]:
    """A unit test of an alerting rule: whether it fires at this time with these series."""
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


def money(cost: float | None, estimate: float | None, budget: float | None) -> dict[str, str]:
    labels = 'namespace="team", job_name="digits", currency="USD"'
    values = {"cost": cost, "cost_estimate": estimate, "budget": budget}
    return {f"yolojob_job_{name}{{{labels}}}": f"{value}x60" for name, value in values.items() if value is not None}


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
    "over-estimate": alert(
        "YolojobOverBudget", money(9.0, 12.0, 10.0), "20m", True, severity="warning", currency="USD", **JOB
    ),
    "over-budget": alert(
        "YolojobOverBudget", money(11.0, None, 10.0), "20m", True, severity="warning", currency="USD", **JOB
    ),
    "within-budget": alert("YolojobOverBudget", money(4.0, 9.0, 10.0), "20m", False),
    "no-budget": alert("YolojobOverBudget", money(4.0, 900.0, None), "20m", False),
    "in-step": alert(
        "YolojobStraggler", {**BOTH, **phases(0, "forward", "0+20x60"), **phases(1, "forward", "0+22x60")}, "40m", False
    ),
}


@pytest.mark.parametrize("test", ALERTS.values(), ids=list(ALERTS))
def test_alert_fires_only_under_its_condition(test: dict[str, Any], tmp_path: Path) -> None:
    """promtool evaluates the rules. The texts of the alerts are not tested."""
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
