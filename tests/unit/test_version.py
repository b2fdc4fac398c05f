"""tools/version.py: the version in `yolojob/__init__.py` is the version everywhere."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import version
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager
from support import ROOT

import yolojob

RENDERED = [ROOT / "manifests" / "install.yaml", *sorted((ROOT / "tests" / "cluster" / "snapshots").glob("*.yaml"))]
"""The files that Helm renders from the chart."""
_LABEL = re.compile(r'app\.kubernetes\.io/version: "([^"]+)"')
OTHER = "9.8.7-rc.6"


def test_version_is_read_from_the_package() -> None:
    assert version.current() == yolojob.__version__


def test_version_in_the_wheel_is_the_package_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" not in project, "pyproject.toml must not repeat the version"
    wheel = ProjectMetadata(str(ROOT), PluginManager()).version
    assert wheel == yolojob.__version__.replace("-rc.", "rc")


@pytest.mark.parametrize("path", version.STAMPED, ids=lambda p: p.name)
def test_stamped_file_has_the_current_version(path: Path) -> None:
    assert path.read_text() == version.render(path), "run `make generate`"


@pytest.mark.parametrize("path", version.STAMPED, ids=lambda p: p.name)
def test_stamp_replaces_every_occurrence(path: Path) -> None:
    text = path.read_text()
    stamped = version.stamp(text, OTHER)
    assert OTHER in stamped
    assert yolojob.__version__ not in stamped
    assert version.stamp(stamped, yolojob.__version__) == text, "nothing else changes"


@pytest.mark.parametrize("path", RENDERED, ids=lambda p: p.name)
def test_rendered_chart_has_only_the_current_version(path: Path) -> None:
    text = path.read_text()
    labels, tags = set(_LABEL.findall(text)), set(version.IMAGE_TAG.findall(text))
    assert labels == tags == {yolojob.__version__}, "run `make generate`"


def test_image_tags_occur_only_in_generated_files() -> None:
    folders = ("docs", "helm", "manifests", "tests/cluster", ".github", ".devcontainer")
    files = [*ROOT.glob("*"), *(path for folder in folders for path in (ROOT / folder).rglob("*"))]
    texts = {
        p for p in files if p.name == "Dockerfile" or p.suffix in {".md", ".yaml", ".yml", ".tpl", ".txt", ".json"}
    }
    tagged = {path for path in texts if version.IMAGE_TAG.search(path.read_text(encoding="utf-8"))}
    assert tagged == {*version.STAMPED, *RENDERED}, "STAMPED in tools/version.py lists the files with image tags"


@pytest.mark.parametrize("text", ['__version__ = "1.2"\n', '__version__ = "1.2.3.dev4"\n', "no version here\n"])
def test_current_refuses_a_version_that_helm_or_python_refuses(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "__init__.py"
    source.write_text(text)
    monkeypatch.setattr(version, "SOURCE", source)
    with pytest.raises(ValueError, match=r"expected X\.Y\.Z"):
        version.current()


@pytest.mark.parametrize(("tag", "accepted"), [(f"v{yolojob.__version__}", True), (f"v{OTHER}", False)])
def test_main_compares_the_tag_with_the_version(tag: str, accepted: bool) -> None:
    command = [sys.executable, str(ROOT / "tools" / "version.py"), tag]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) is accepted
    assert yolojob.__version__ in (done.stdout if accepted else done.stderr)
