"""What the user can mend, said in one line: the field or the place, the value, and the way out."""

from __future__ import annotations

from yolojob.api.constants import ExitCode


class UserError(Exception):
    """The command line prints its words and ends with its code."""

    code: int = ExitCode.BAD_INPUT


class ClusterError(UserError):
    """The cluster does not do what it was asked, in words for people."""


class NotFound(ClusterError):
    """There is no such job."""
