"""Weights that Ultralytics publishes: their names, addresses and checksums."""

from __future__ import annotations

import difflib
import os

from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES

from yolojob.api import constants
from yolojob.api import uri as uris
from yolojob.api.reasons import Reason
from yolojob.api.uri import Uri
from yolojob_trainer.errors import BadInput

RELEASE = "https://github.com/ultralytics/assets/releases/download/v8.4.0"
"""Folder of the files; the release that Ultralytics 8.4 itself fetches them from."""
NAMES = frozenset(name for name in GITHUB_ASSETS_NAMES if name.startswith("yolo") and name.endswith(".pt"))
SHA256: dict[str, str] = {}
"""Checksums that at least two independent public projects state for a file; Ultralytics publishes none."""


def locate(name: str) -> Uri:
    """Return the address of official weights, with the checksum where it is known.

    It is below the URI in the environment variable YOLOJOB_WEIGHTS, if that is set.

    Args:
        name: of the file, such as yolo26n.pt.

    Raises:
        BadInput: there are no weights of this name, or the variable is not a URI.
    """
    if name not in NAMES:
        near = difflib.get_close_matches(name, sorted(NAMES), n=3, cutoff=0.4)
        hint = f"; similar names: {', '.join(near)}" if near else ""
        raise BadInput(
            Reason.MODEL_NOT_FOUND,
            f"spec.model.name: {name}: Ultralytics publishes no weights of this name{hint}; for a file of your own, "
            "set spec.model.weights.uri",
        )
    folder = os.environ.get(constants.ENV_WEIGHTS) or RELEASE
    digest = f"#sha256={SHA256[name]}" if name in SHA256 and folder.startswith("https://") else ""
    try:
        return uris.parse(f"{folder.rstrip('/')}/{name}{digest}", uris.WEIGHTS_SCHEMES)
    except ValueError as error:
        raise BadInput(Reason.INVALID_ENVIRONMENT, f"{constants.ENV_WEIGHTS}: {folder}: {error}") from None
