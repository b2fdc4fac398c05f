"""Errors that end a training, each with its exit code."""

from __future__ import annotations

from yolojob.api.constants import ExitCode
from yolojob.api.reasons import Reason


class TrainerError(Exception):
    """A failure whose message is meant for the user."""

    exit_code = ExitCode.FAILED

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class BadInput(TrainerError):
    """The specification or the data is wrong, so another attempt would fail, too."""

    exit_code = ExitCode.BAD_INPUT


class PeerLost(TrainerError):
    """Another worker is lost."""

    exit_code = ExitCode.PEER_LOST


class Interrupted(TrainerError):
    """The process was asked to stop by SIGTERM; the state is saved."""

    exit_code = ExitCode.INTERRUPTED


_LOST_PEER_MESSAGES = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "socket timeout",
    "timed out waiting",
    "waiting for clients",
    "wait timeout",
    "nccl communicator was aborted",
    "ncclremoteerror",
    "ncclsystemerror",
    "remote process exited",
    "remote process exiting",
    "recv, ",
    "failed to recv",
)


def is_lost_peer(error: BaseException) -> bool:
    """Return whether an error of torch.distributed was caused by a lost peer.

    Gloo raises a plain RuntimeError, so only its message tells.
    """
    message = str(error).lower()
    return isinstance(error, RuntimeError) and any(part in message for part in _LOST_PEER_MESSAGES)
