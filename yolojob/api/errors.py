"""Errors that the user can correct: a message of one line with the field or place, the value, and the correction."""

from __future__ import annotations

from yolojob.api.constants import ExitCode


class UserError(Exception):
    """An expected error: the command line prints its message and exits with its code."""

    code: int = ExitCode.BAD_INPUT


class ClusterError(UserError):
    """The cluster cannot be reached, or rejects a request."""


class NotFound(ClusterError):
    """The job, worker or pod does not exist."""
