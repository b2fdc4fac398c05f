"""Consoles of the commands: words of others cannot control the terminal."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from yolojob.cli.console import SafeConsole, print_table
from yolojob.format import printable

CLIPBOARD = "\x1b]52;c;cm0gLXJmIH4=\x07"
"""Writes a command into the clipboard of many terminals."""


def printed(renderable: object) -> str:
    """Returns what a colour terminal receives."""
    file = io.StringIO()
    SafeConsole(file=file, force_terminal=True, width=200, markup=False).print(renderable)
    return file.getvalue()


@pytest.mark.parametrize("attack", [CLIPBOARD, "\x1b[2J", "\r", "\x9b31m", "\x08", "\u202e", "\x00"])
def test_console_shows_control_characters_of_others(attack: str) -> None:
    table = Table("message")
    table.add_row(f"before{attack}after")
    for renderable in (f"before{attack}after", table):
        assert attack not in printed(renderable)
        assert "before" in printed(renderable)


def test_console_keeps_its_own_colours() -> None:
    assert "\x1b[" in printed(Table("message", style="bold red", title="t"))


@pytest.mark.parametrize("width", [20, 80, 1000])
@pytest.mark.parametrize("is_terminal", [False, True])
def test_table_has_each_row_in_one_line_and_no_cell_cut(width: int, is_terminal: bool) -> None:
    table = Table("TARGET", "RANGE", box=None, pad_edge=False)
    rows = [("2 × standard-4 (gke)", "34 s … 9.8 min"), ("a" * 60, "b" * 60)]
    for row in rows:
        table.add_row(*row)
    file = io.StringIO()
    console = SafeConsole(file=file, force_terminal=is_terminal, color_system=None, width=width, markup=False)
    print_table(console, table, title="A title that is longer than the narrowest [bold]terminal")
    lines = [" ".join(line.split()) for line in file.getvalue().splitlines()]
    title = "A title that is longer than the narrowest [bold]terminal"
    assert lines == [title, "TARGET RANGE", *map(" ".join, rows)]


@given(st.text())
def test_printable_leaves_no_control_character(text: str) -> None:
    assert all(char.isprintable() or char in "\n\t" for char in printable(text))


@given(st.text(alphabet=st.characters(categories=["L", "N", "P", "S", "Zs"], include_characters="\n\t")))
def test_printable_changes_no_ordinary_text(text: str) -> None:
    assert printable(text) == text or any(not char.isprintable() for char in text if char not in "\n\t")
