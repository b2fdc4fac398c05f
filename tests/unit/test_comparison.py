"""Comparisons of places: data, HTML page and picture. tests/e2e opens the page in a browser."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.bench_data import POWER, estimator, job, record
from support.run_folders import write_run

from yolojob.estimation.target import Target
from yolojob.reports import comparison, comparison_page

NAME = "</script><b>x"
"""A job's name that would break the page if it were not escaped."""


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> comparison.Comparison:
    """A comparison of this machine, a cluster and rented machines, with the curve of a finished run."""
    measured = estimator(
        record(energy=POWER),
        record("prod", per_worker_hour=0.5, currency="USD"),
        assumed={"purchasePrice": 1500},
    )
    targets = [
        Target(text="local"),
        Target(text="prod", context="prod"),
        Target(text="gke:g2-standard-4x2", machine="g2-standard-4", workers=2),
    ]
    named = job()
    named.metadata.name = NAME
    curve = write_run(tmp_path_factory.mktemp("curve") / "run", epochs=20)
    return comparison.build_comparison(named, measured, [measured.option(target) for target in targets], curve)


def test_comparison_json_has_times_and_costs_of_every_place(compared: comparison.Comparison) -> None:
    content = comparison.to_json(compared)
    assert {option["name"] for option in content["options"]} == {"local", "prod", "2 × g2-standard-4 (gke)"}
    for option in content["options"]:
        assert option["seconds"]["low"] <= option["seconds"]["value"] <= option["seconds"]["high"]
        assert option["costPerEpoch"] == pytest.approx(option["cost"]["value"] / 20)
    assert "cheaper than" in content["breakEven"]


def test_comparison_page_has_its_sections_and_a_picture(compared: comparison.Comparison, tmp_path: Path) -> None:
    comparison_page.write_comparison_page(compared, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    for heading in (
        "Where the time goes",
        "Where the money goes",
        "Time against money",
        "With more workers",
        "Buy or rent",
        "Energy",
    ):
        assert f"<h2>{heading}</h2>" in text
    assert "Cost of reaching mAP50-95" in text
    assert NAME not in text, "the job's name is not escaped"
    assert "http://" not in text.split("</head>")[1]
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
