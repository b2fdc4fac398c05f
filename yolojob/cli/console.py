"""Consoles of the commands, and lines of text that rich prints unchanged."""

from __future__ import annotations

from rich.console import Console
from rich.style import StyleType

PIPE_WIDTH = 1000
"""Columns where the output is not a terminal: programs read whole lines."""


def plain_console() -> Console:
    """A console for text from others: brackets are not markup, and a pipe cuts nothing off."""
    console = Console(markup=False, emoji=False)
    return console if console.is_terminal else Console(markup=False, emoji=False, width=PIPE_WIDTH)


def print_line(console: Console, text: str, style: StyleType | None = None) -> None:
    """Print a line as it is: numbers and paths are not coloured, and the terminal wraps the line, so that it can be
    copied."""
    console.print(text, style=style, highlight=False, soft_wrap=True)
