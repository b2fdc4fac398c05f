"""Consoles of the commands, and lines of text that rich prints unchanged."""

from __future__ import annotations

from collections.abc import Iterable

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.segment import Segment
from rich.style import StyleType
from rich.table import Table
from rich.text import Text

from yolojob.format import printable

PIPE_WIDTH = 1000
"""Columns where the output is not a terminal: programs read whole lines."""


class SafeConsole(Console):
    """A console that shows the control characters in text of others, and sends only its own to the terminal."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


def plain_console() -> Console:
    """A console for text from others: brackets are not markup, and a pipe cuts nothing off."""
    console = SafeConsole(markup=False, emoji=False)
    return console if console.is_terminal else SafeConsole(markup=False, emoji=False, width=PIPE_WIDTH)


def echo(text: str, *, err: bool = False) -> None:
    """Print text that holds words of others."""
    typer.echo(printable(text), err=err)


def print_line(console: Console, text: str, style: StyleType | None = None) -> None:
    """Print a line as it is: numbers and paths are not coloured, and the terminal wraps the line, so that it can be
    copied."""
    console.print(text, style=style, highlight=False, soft_wrap=True)


def print_table(console: Console, table: Table, *, title: str = "") -> None:
    """Print a table with each cell in one line.

    A terminal that is too narrow wraps the lines, as those of kubectl. Rich would break the cells inside of words, and
    would do the same in a pipe.

    Args:
        console: to print to.
        table: without a title of its own, which rich would wrap at the width of the table.
        title: printed above the table.
    """
    if title:
        console.print(Text(title, style="italic"), soft_wrap=True)
    for column in table.columns:
        column.no_wrap = True
    unlimited = console.options.update(max_width=PIPE_WIDTH)
    table.width = Measurement.get(console, unlimited, table).maximum
    console.print(table, crop=False)
