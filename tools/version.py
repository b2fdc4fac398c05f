"""Writes the package's version into the files that repeat it.

`yolojob/__init__.py` is the only place where the version is edited. The wheel takes it from there
(`[tool.hatch.version]`), the chart and the documentation get it from here by `make generate`, and Helm renders the
chart's version into manifests/install.yaml and the snapshots. Standard library only: `python3 tools/version.py` prints
the version without an environment.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "yolojob" / "__init__.py"
STAMPED = (
    ROOT / "Dockerfile",
    ROOT / "docs" / "install.md",
    ROOT / "docs" / "tutorial.md",
    ROOT / "helm" / "yolojob" / "Chart.yaml",
)
"""The files that repeat the version and are otherwise written by hand."""
SEMVER = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-rc\.(0|[1-9]\d*))?")
"""What Helm (SemVer), Python packaging (PEP 440) and image tags all accept: 1.2.3, and 1.2.3-rc.1 before a release."""
IMAGE_TAG = re.compile(r"(?:(?<=yolojob/operator:)|(?<=yolojob/trainer:))\d+\.\d+\.\d+(?:-rc\.\d+)?")
_SOURCE_LINE = re.compile(r'^__version__ = "([^"]*)"$', re.M)
_CHART_LINE = re.compile(r"^((?:version|appVersion): )\S+$", re.M)


def current() -> str:
    """The version in yolojob/__init__.py.

    Raises:
        ValueError: it is missing, or it is not a version that Helm, Python packaging and image tags all accept.
    """
    match = _SOURCE_LINE.search(SOURCE.read_text())
    version = match[1] if match else ""
    if not SEMVER.fullmatch(version):
        raise ValueError(f"{SOURCE}: __version__ is {version!r}, expected X.Y.Z or X.Y.Z-rc.N")
    return version


def stamp(text: str, version: str) -> str:
    """The text of a file of `STAMPED`, with this version in image tags and in the chart's version lines."""
    return _CHART_LINE.sub(rf"\g<1>{version}", IMAGE_TAG.sub(version, text))


def render(path: Path) -> str:
    """The text that a file of `STAMPED` should have."""
    return stamp(path.read_text(), current())


def main() -> None:
    """Print the version; with a tag as the argument (`v1.2.3`), fail unless it names that version."""
    version = current()
    if sys.argv[1:] not in ([], [f"v{version}"]):
        sys.exit(f"tag {sys.argv[1]} does not match __version__ {version} in {SOURCE}")
    print(version)


if __name__ == "__main__":
    main()
