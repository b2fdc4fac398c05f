"""The HTML pages in a real browser: no console error, every plot drawn, readable on a wide and on a narrow screen."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from devcluster import binaries
from playwright.sync_api import Browser, sync_playwright

WIDTHS = (1280, 390)
"""Screen widths of a desktop and of a phone, in CSS pixels."""
COMMAND = ("python", "-m", "yolojob.cli")
MANIFEST = Path(__file__).parent.parent.parent / "manifests" / "examples" / "digits.yaml"

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, headless."""
    if not shutil.which("chromium"):
        binaries.install("chromium", "fonts-dejavu-core")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def pages(workspace: Path) -> Path:
    """Folder with the report of a run, and with a comparison of this machine and two rented ones."""
    folder = workspace

    def call(*arguments: str) -> str:
        done = subprocess.run([*COMMAND, *arguments], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    if not (folder / "volumes" / "digits" / "results.csv").exists():  # the documented commands have run it
        call("run", str(MANIFEST))
    call("report", "volumes/digits")
    call("check", str(MANIFEST))
    comparison = call(
        *("compare", str(MANIFEST), "--on", "local", "--on", "gke:g2-standard-4x2", "--on", "eks:g4dn.xlarge"),
        *("--seconds", "10", "--assume", "watts=60", "--assume", "purchasePrice=900", "--curve", "volumes/digits"),
    )
    assert "This assumes" in comparison
    if kept := os.environ.get("YOLOJOB_PICTURES"):
        Path(kept).mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "compare.png", kept)
    return folder


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("page_name", ["report", "compare", "check"])
def test_page_is_drawn_without_errors(browser: Browser, pages: Path, page_name: str, width: int) -> None:
    """YOLOJOB_PICTURES=docs/images keeps the pictures."""
    errors: list[str] = []
    requests: list[str] = []
    page: Any = browser.new_page(viewport={"width": width, "height": 900})
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(f"file://{pages}/{page_name}.html")
    page.wait_for_function(
        "document.querySelectorAll('.plot').length === document.querySelectorAll('.plot .main-svg').length / 3"
    )
    plots = page.evaluate(
        """[...document.querySelectorAll('.plot')].map(plot => ({
            traces: plot.data.length,
            drawn: plot.querySelectorAll('.bars path, .scatterlayer .js-line, .scatterlayer .point').length,
            width: plot.getBoundingClientRect().width,
            cut: [...plot.querySelectorAll('.xtitle, .ytitle')]
              .some(t => t.getBoundingClientRect().right > innerWidth + 1),
        }))"""
    )
    assert len(plots) >= 3
    for plot in plots:
        assert plot["traces"] > 0
        assert plot["drawn"] > 0, plot
        assert 0.8 * min(width, 1100) <= plot["width"] <= width
        assert not plot["cut"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page is wider than the screen"
    assert page.evaluate("parseFloat(getComputedStyle(document.body).fontSize)") >= 14
    assert errors == []
    assert [url for url in requests if not url.startswith(("file://", "data:", "blob:"))] == [], (
        "the page loads something from the network"
    )
    shot = Path(os.environ.get("YOLOJOB_PICTURES") or pages) / f"{page_name}-{width}.png"
    shot.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(shot), full_page=True)
    assert shot.stat().st_size > 20_000
    page.close()
