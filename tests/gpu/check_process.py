"""The process of a check: `python -m gpu.MODULE CHECK [JSON]` calls a function and reports its rows."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable

from gpu.table import Row, report
from gpu.training_run import started


def main(*checks: Callable[..., list[Row]]) -> None:
    """Run that of the checks which the command line names, with its arguments in JSON, and exit."""
    name, *options = sys.argv[1:]
    by_name = {check.__name__: check for check in checks}
    try:
        report(by_name[name](**(json.loads(options[0]) if options else {})))
    finally:
        for training in started:
            training.kill()
    sys.stdout.flush()
    os._exit(0)  # threads of loaders and of CUDA must not delay the end
