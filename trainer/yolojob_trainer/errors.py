"""How a training ends badly, each with its exit code."""

from __future__ import annotations

from yolojob.api.constants import ExitCode
from yolojob.api.reasons import Reason


class TrainerError(Exception):
    """A failure whose words are meant for the user."""

    exit_code = ExitCode.FAILED

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class BadInput(TrainerError):
    """The specification or the data is wrong: no attempt will do better."""

    exit_code = ExitCode.BAD_INPUT


class PeerLost(TrainerError):
    """Another worker went away."""

    exit_code = ExitCode.PEER_LOST


class Interrupted(TrainerError):
    """SIGTERM; the state is saved."""

    exit_code = ExitCode.INTERRUPTED


_LOST_PEER_WORDS = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "socket timeout",
    "timed out waiting",
    "waiting for clients",
    "wait timeout",
    "nccl communicator was aborted",
    "remote process exited",
    "recv, ",
    "failed to recv",
)


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error of torch.distributed says that somebody else is gone.

    Gloo raises a bare RuntimeError, so its words are all there is to tell by.
    """
    words = str(error).lower()
    return isinstance(error, RuntimeError) and any(w in words for w in _LOST_PEER_WORDS)
