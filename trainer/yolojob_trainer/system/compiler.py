"""Finds the C compiler that torch.compile needs."""

from __future__ import annotations

import os
import shutil


def has_c_compiler() -> bool:
    """Return whether a C compiler is installed.

    Triton builds the launchers of its kernels with one (triton.runtime.build), Inductor its kernels for CPUs.
    """
    return any(shutil.which(name) for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name)
