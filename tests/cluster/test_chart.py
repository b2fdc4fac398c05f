"""The chart renders, its manifest is the committed one, and the API server takes all of it."""

from __future__ import annotations

import json

import yaml
from install_manifest import render
from kube import Kube
from support import ROOT


def test_install_yaml_is_the_chart() -> None:
    assert (ROOT / "manifests" / "install.yaml").read_text() == render(), "run `make generate`"


def test_the_cache_is_the_volume_that_the_values_name() -> None:
    """And nothing beside it: Helm lays values over the chart's own."""
    text = render("--set", "trainer.cacheVolume.hostPath.path=/var/cache/yolojob")
    deployment = next(d for d in yaml.safe_load_all(text) if d["kind"] == "Deployment")
    variables = {e["name"]: e["value"] for e in deployment["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert json.loads(variables["YOLOJOB_CACHE_VOLUME"]) == {"hostPath": {"path": "/var/cache/yolojob"}}
    assert "YOLOJOB_CACHE_VOLUME" not in render()


def test_the_api_server_takes_it(kube: Kube) -> None:
    kube.run("create", "namespace", "yolojob-system", check=False)
    system = Kube(kube.kubeconfig, "yolojob-system")
    done = system.run("apply", "--dry-run=server", "--filename", str(ROOT / "manifests" / "install.yaml"))
    assert "deployment.apps/yolojob-operator" in done.stdout
