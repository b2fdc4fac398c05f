"""Datasets that Ultralytics publishes as one archive: `ultralytics://NAME`."""

from __future__ import annotations

import os
from pathlib import Path

import ultralytics

from yolojob.api import constants
from yolojob.api import uri as uris
from yolojob.api.reasons import Reason
from yolojob.api.uri import Uri
from yolojob_trainer.errors import BadInput

RELEASE = "https://github.com/ultralytics/assets/releases/download/v0.0.0"
"""Folder of the archives; the release that Ultralytics itself fetches them from."""
ARCHIVES = {"HomeObjects-3K": "homeobjects-3K", "depth8": "depth8-png", "nyu-depth": "nyu-depth-png"}
"""Names of archives, without their suffix, that differ from those of the datasets."""
DATA_FILES = Path(ultralytics.__file__).parent / "cfg" / "datasets"


def address(uri: Uri) -> Uri:
    """Return where a dataset is: for ultralytics://NAME its archive, otherwise the same URI.

    The archive is below the URI in the environment variable YOLOJOB_DATASETS, if that is set.

    Raises:
        BadInput: the variable is not a URI.
    """
    if uri.scheme != uris.ULTRALYTICS:
        return uri
    name = uri.location
    folder = os.environ.get(constants.ENV_DATASETS) or RELEASE
    try:
        return uris.parse(f"{folder.rstrip('/')}/{ARCHIVES.get(name, name)}.zip", (*uris.REMOTE_SCHEMES, "file"))
    except ValueError as error:
        raise BadInput(Reason.INVALID_ENVIRONMENT, f"{constants.ENV_DATASETS}: {folder}: {error}") from None


def data_file(name: str) -> Path:
    """Return Ultralytics' data file of a dataset; it does not exist for a classification, which has none.

    Its `download:` never runs: `address` says where the archive is.
    """
    return DATA_FILES / f"{name}.yaml"
