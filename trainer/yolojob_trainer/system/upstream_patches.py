"""All places where this package patches Ultralytics, or calls its private functions by name."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

import ultralytics.data.dataset
import ultralytics.data.utils
import ultralytics.utils.downloads
from ultralytics.models.yolo.detect import DetectionValidator

REPAIR_FUNCTION = "_replace_image"
"""Function of `ultralytics.data.utils` that rewrites a JPEG without an end marker, inside the dataset."""
DOWNLOADERS = ("safe_download", "get_github_assets")
"""Functions of `ultralytics.utils.downloads` that use the network."""
CACHE_WRITER = "save_dataset_cache_file"
"""Function of `ultralytics.data.dataset` that writes scanned labels as a pickle."""
CACHE_READER = "load_dataset_cache_file"
"""Function of `ultralytics.data.dataset` that reads such a pickle."""
IMAGE_CHECK_FUNCTION = "check_image"
"""Function of `ultralytics.data.utils` that checks the header of an image, and of some formats its content."""
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


def _replace(module: Any, name: str, replacement: Callable[..., Any]) -> None:
    """Replace a function in the module that defines it, and in all loaded modules that have imported it.

    Raises:
        RuntimeError: the module has no such function.
    """
    original = getattr(module, name, None)
    if original is None:
        raise RuntimeError(f"{module.__name__}.{name} not found; check what this version does instead")
    users = [m for key, m in list(sys.modules.items()) if key.startswith("ultralytics.") and m is not None]
    for user in [module, *users]:
        if vars(user).get(name) is original:
            setattr(user, name, replacement)


def forbid_network() -> None:
    """Make Ultralytics fetch nothing: no weights, fonts or data, which names in untrusted files could choose.

    Raises:
        RuntimeError: this version of Ultralytics has no such functions.
    """
    downloads = ultralytics.utils.downloads
    is_url = downloads.is_url

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise ConnectionError(f"Ultralytics must not use the network here: {args or kwargs}")

    def never_online(url: Any, check: bool = False) -> bool:
        """Return whether a text is a URL; none is reachable. Upstream then uses what it has on this machine."""
        return not check and is_url(url)

    for name in DOWNLOADERS:
        _replace(downloads, name, refuse)
    _replace(downloads, "is_url", never_online)


def extend_image_check(check: Callable[[str], None]) -> None:
    """Make Ultralytics call `check(path)` after its own check of an image; it raises an error for an unusable one.

    Raises:
        RuntimeError: this version of Ultralytics has no such function.
    """
    original = getattr(ultralytics.data.utils, IMAGE_CHECK_FUNCTION, None)

    def both(path: str) -> Any:
        assert original is not None
        result = original(path)
        check(path)
        return result

    _replace(ultralytics.data.utils, IMAGE_CHECK_FUNCTION, both)


def forbid_label_pickles() -> None:
    """Make Ultralytics neither write nor read pickles of scanned labels.

    Raises:
        RuntimeError: this version of Ultralytics has no such functions.
    """

    def write(_prefix: str, _path: Any, labels: dict[str, Any], version: str) -> None:
        """Only set the version, as upstream's does: `yolojob_trainer.data.label_cache` writes the labels."""
        labels["version"] = version

    def read(path: Any) -> Any:
        raise RuntimeError(f"{path}: label caches of Ultralytics are pickles, which may run code")

    _replace(ultralytics.data.dataset, CACHE_WRITER, write)
    _replace(ultralytics.data.dataset, CACHE_READER, read)


def raise_detection_limit(args: Any, datasets: dict[str, Any]) -> None:
    """Raise `args.max_det` to the largest number of objects in an image, like upstream's own set-up.

    Args:
        args: Ultralytics' settings of the training.
        datasets: by split.
    """
    getattr(DetectionValidator, DETECTION_LIMIT_FUNCTION)(args, datasets)
