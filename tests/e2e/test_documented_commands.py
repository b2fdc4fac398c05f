"""Runs the commands of README and docs as they are written there, in their order."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from support import documented, eventually
from support.kube import Kube
from support.release import Release

pytestmark = [pytest.mark.usefixtures("operator"), pytest.mark.timeout(1800)]
WATCH_OPTIONS = ("-w", "--watch")
"""Options of commands that run until they are interrupted."""


def run(command: str, folder: Path, environment: dict[str, str]) -> None:
    """Runs a command, and asserts that it succeeds; a watch is interrupted after 5 s."""
    watches = command.startswith("kubectl") and command.split()[-1] in WATCH_OPTIONS
    seconds = 5 if watches else 600
    done = subprocess.run(
        ["timeout", str(seconds), "bash", "-ec", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    expected = (0, 124) if watches else (0,)
    assert done.returncode in expected, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"


def commands(how: str) -> list[str]:
    """Returns the documented commands that are tested in a given way."""
    listed = [command for _, command in documented.commands()]
    return [command for command in listed if (rule := documented.rule(command)) and rule.how == how]


def test_documented_local_commands_succeed(workspace: Path, kube: Kube) -> None:
    local = commands("here")
    # `report` and `--curve` need the folder that `run` leaves.
    for command in sorted(local, key=lambda c: (not c.startswith("yolojob run"), "report" in c)):
        run(command, workspace, kube.environment)
    assert len(local) >= 6


@pytest.mark.parametrize("volume", ["digits"], indirect=True)
def test_documented_cluster_commands_succeed(
    kube: Kube, operator: Release, volume: str, tmp_path: Path, workspace: Path
) -> None:
    config = tmp_path / "kubeconfig"
    shutil.copy(kube.kubeconfig, config)
    environment = {**kube.environment, "KUBECONFIG": str(config)}
    choose = ["kubectl", "config", "set-context", "--current", "--namespace", kube.namespace]
    subprocess.run(choose, env=environment, check=True, capture_output=True)
    kube.run("delete", "yolotrainingjob", "digits", "--ignore-not-found")
    eventually(lambda: not kube.pods("digits"), "the name is free", seconds=60)
    for command in sorted(commands("cluster"), key=lambda c: c.startswith("yolojob delete")):
        if command.startswith("yolojob submit"):
            kube.run("delete", "yolotrainingjob", "digits", "--ignore-not-found")
        run(command, workspace, environment)
    assert not kube.get("yolotrainingjob", "digits")
