"""The catalogue of machines: its own rows, and files of the user."""

from __future__ import annotations

from pathlib import Path

import pytest

from yolojob.catalogue import machines
from yolojob.catalogue.machines import InvalidCatalogue, UnknownMachine


def test_builtin_machines_have_known_gpus() -> None:
    catalogue = machines.builtin()
    for name, row in catalogue.machines.items():
        assert row.gpu in catalogue.accelerators, name


def test_load_adds_the_users_machines(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "machines: {box: {provider: us, gpu: T4, gpus: 1, cpus: 8, network: 1, price: 0.1, date: 2026-01-01, "
        "source: us}}"
    )
    catalogue = machines.load(path)
    assert catalogue.machine("box").price == pytest.approx(0.1)
    assert "g5.xlarge" in catalogue.machines


def test_load_with_another_currency_drops_the_builtin_prices(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("currency: EUR")
    assert machines.load(path).machines == {}, "the built-in prices are in US dollars"


@pytest.mark.parametrize("text", ["[]", "foo: 1", "machines: {box: {price: -1}}", "machines: {box: {price: x}}", "{"])
def test_load_of_invalid_catalogue_names_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InvalidCatalogue, match=r"mine\.yaml"):
        machines.load(path)


def test_machine_with_misspelt_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownMachine, match=r"p5\.48xlarge"):
        machines.builtin().machine("p5.48xlargo")
