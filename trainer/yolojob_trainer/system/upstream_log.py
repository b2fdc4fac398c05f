"""Forwards what Ultralytics logs: warnings to the job's report, everything else to the log if the job asks for it.

`environment.prepare` silences Ultralytics, whose log is made for one person at a terminal.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable

from ultralytics.utils import LOGGER

TRANSFERRED = re.compile(r"Transferred (\d+)/(\d+) items from pretrained weights")
MIN_TRANSFERRED_SHARE = 0.9
"""Share of the tensors below which a warning is due. With other classes only a few tensors of the head differ; with
another architecture or scale most of the network starts with random values."""
MAX_CHARACTERS = 500
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
"""Colours for a terminal."""
REPLACED = (
    "AutoUpdate disabled",  # an image needs a package; the image is reported
    "cache='ram' may produce non-deterministic",  # samples depend only on seed, epoch and number here
    "Labels are missing or empty in",  # the scan is reported with the numbers of images
    "no labels found in",
)
"""Parts of warnings of Ultralytics that do not hold here, or that this package words better."""


class _Forwarder(logging.Handler):
    def __init__(self, warn: Callable[[str], None], verbose: bool) -> None:
        super().__init__(logging.INFO)
        self._warn, self._verbose = warn, verbose

    def emit(self, record: logging.LogRecord) -> None:
        message = " ".join(ANSI.sub("", record.getMessage()).split())
        if match := TRANSFERRED.search(message):
            taken, total = int(match[1]), int(match[2])
            if taken < MIN_TRANSFERRED_SHARE * total:
                self._warn(f"spec.model.weights: only {taken} of {total} tensors fit this network; the rest is random")
            print(f"yolojob: {message}", file=sys.stderr, flush=True)  # noqa: T201
        elif record.levelno >= logging.WARNING:
            if not any(part in message for part in REPLACED):
                self._warn(message[:MAX_CHARACTERS])
        elif self._verbose and message:
            print(message, file=sys.stderr, flush=True)  # noqa: T201


def forward(warn: Callable[[str], None], *, verbose: bool) -> None:
    """Forward the log of Ultralytics from now on.

    Args:
        warn: called with each warning, in one line.
        verbose: whether to print its other messages.
    """
    for handler in list(LOGGER.handlers):
        LOGGER.removeHandler(handler)
    LOGGER.setLevel(logging.INFO)
    LOGGER.addHandler(_Forwarder(warn, verbose))
