"""Entry point of a training process: started by `yolojob_trainer.launch`.

Reads the run from YOLOJOB_RUN, executes it, writes a report where Kubernetes reads it, and exits with one of
`yolojob.api.constants.ExitCode`.
"""

from __future__ import annotations

import os
import sys

from yolojob_trainer import environment
from yolojob_trainer.app import main

__all__ = ["main"]

# Before torch and Ultralytics are imported, which `main` does.
environment.prepare()

if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: destructors of process groups and loaders may wait for peers that are gone.
    os._exit(code)
