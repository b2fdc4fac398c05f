"""The chart renders, its manifest is the committed one, and the API server takes all of it."""

from __future__ import annotations

from install_manifest import render
from kube import Kube
from support import ROOT


def test_install_yaml_is_the_chart() -> None:
    assert (ROOT / "manifests" / "install.yaml").read_text() == render(), "run `make generate`"


def test_the_api_server_takes_it(kube: Kube) -> None:
    kube.run("create", "namespace", "yolojob-system", check=False)
    system = Kube(kube.kubeconfig, "yolojob-system")
    system.run("apply", "--dry-run=server", "--filename", str(ROOT / "manifests" / "install.yaml"))
