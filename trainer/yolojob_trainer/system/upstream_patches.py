"""All places where this package patches Ultralytics, calls its private functions by name, or works around torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import ultralytics.data.utils
from ultralytics.models.yolo.detect import DetectionValidator

REPAIR_FUNCTION = "_replace_image"
"""Function of `ultralytics.data.utils` that rewrites a JPEG without an end marker, inside the dataset."""
DETECTION_LIMIT_FUNCTION = "_check_max_det"
"""Static method of `DetectionValidator` that compares `max_det` with the objects of the images."""


def replace_jpeg_repair(check: Callable[[str, Any], None]) -> None:
    """Make Ultralytics call `check(path, repair)` instead of repairing a JPEG that has no end marker.

    A dataset may be shared or read-only, so nothing may be written into it.

    Raises:
        RuntimeError: this version of Ultralytics has no such function, or one with other parameters.
    """
    original = getattr(ultralytics.data.utils, REPAIR_FUNCTION, None)
    if original is None or len(inspect.signature(original).parameters) != 2:
        raise RuntimeError(
            f"ultralytics {ultralytics.__version__}: ultralytics.data.utils.{REPAIR_FUNCTION}(path, write) not found; "
            "check how this version repairs JPEG files"
        )
    setattr(ultralytics.data.utils, REPAIR_FUNCTION, check)


def raise_detection_limit(args: Any, datasets: dict[str, Any]) -> None:
    """Raise `args.max_det` to the largest number of objects in an image, like upstream's own set-up.

    Args:
        args: Ultralytics' settings of the training.
        datasets: by split.
    """
    getattr(DetectionValidator, DETECTION_LIMIT_FUNCTION)(args, datasets)


def without_annotations(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Return a DDP communication hook without its type annotations.

    `register_comm_hook` compares annotations with types, but `from __future__ import annotations` makes them strings.
    A hook without annotations is not checked.
    """
    hook.__annotations__ = {}
    return hook
