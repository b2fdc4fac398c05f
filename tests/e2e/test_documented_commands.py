"""The commands of README and docs, as they stand there, one after the other."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from support import ROOT, documented, eventually
from support.kube import Kube
from support.release import Release

pytestmark = [pytest.mark.usefixtures("operator"), pytest.mark.timeout(1800)]
FOR_EVER = ("-w", "--watch")
"""Commands that end when somebody ends them."""


def run(command: str, folder: Path, environment: dict[str, str]) -> None:
    seconds = 5 if command.startswith("kubectl") and command.split()[-1] in FOR_EVER else 600
    done = subprocess.run(
        ["timeout", str(seconds), "bash", "-ec", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    expected = (0, 124) if seconds == 5 else (0,)
    assert done.returncode in expected, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"


def those(how: str) -> list[str]:
    found = [command for _, command in documented.commands()]
    return [command for command in found if (rule := documented.rule(command)) and rule.how == how]


def test_commands_that_run_here(tmp_path: Path, kube: Kube) -> None:
    shutil.copytree(ROOT / "manifests", tmp_path / "manifests")
    found = those("here")
    # `report` and `--curve` want the run that `run` leaves.
    for command in sorted(found, key=lambda c: "report" in c):
        run(command, tmp_path, kube.environment)
    assert len(found) >= 6


@pytest.mark.parametrize("volume", ["digits"], indirect=True)
def test_commands_in_a_cluster(kube: Kube, operator: Release, volume: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "manifests", tmp_path / "manifests")
    config = tmp_path / "kubeconfig"
    shutil.copy(kube.kubeconfig, config)
    environment = {**kube.environment, "KUBECONFIG": str(config)}
    choose = ["kubectl", "config", "set-context", "--current", "--namespace", kube.namespace]
    subprocess.run(choose, env=environment, check=True, capture_output=True)
    kube.run("delete", "yolotrainingjob", "digits", "--ignore-not-found")
    eventually(lambda: not kube.pods("digits"), "the name is free", seconds=60)
    for command in sorted(those("cluster"), key=lambda c: c.startswith("yolojob delete")):
        if command.startswith("yolojob submit"):
            kube.run("delete", "yolotrainingjob", "digits", "--ignore-not-found")
        run(command, tmp_path, environment)
    assert not kube.get("yolotrainingjob", "digits")
