"""All places where this package patches torch, or works around it. Does not import Ultralytics, which takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed

OBJECT_COLLECTIVES = (
    "all_gather_object",
    "broadcast_object_list",
    "gather_object",
    "recv_object_list",
    "scatter_object_list",
    "send_object_list",
)
"""Functions of `torch.distributed` that unpickle what another process sends."""


def forbid_object_collectives() -> None:
    """Make torch's collectives of Python objects fail: they run code that another process sends."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("collectives of objects unpickle what a peer sends; send arrays with World.gather")

    for name in OBJECT_COLLECTIVES:
        for module in (torch.distributed, torch.distributed.distributed_c10d):
            setattr(module, name, refuse)


def without_annotations(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Return a DDP communication hook without its type annotations.

    `register_comm_hook` compares annotations with types, but `from __future__ import annotations` makes them strings.
    A hook without annotations is not checked.
    """
    hook.__annotations__ = {}
    return hook
