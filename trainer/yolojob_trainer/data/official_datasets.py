"""Datasets that Ultralytics publishes as one archive: `ultralytics://NAME`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from yolojob.api import constants
from yolojob.api import uri as uris
from yolojob.api.uri import Uri
from yolojob_trainer.data import mirror

RELEASE = "v0.0.0"
"""The release that Ultralytics itself fetches the archives from."""
ARCHIVES = {"HomeObjects-3K": "homeobjects-3K", "depth8": "depth8-png", "nyu-depth": "nyu-depth-png"}
"""Names of archives, without their suffix, that differ from those of the datasets."""
# Without importing the package, which takes seconds.
_SPEC = find_spec("ultralytics")
DATA_FILES = Path(_SPEC.origin).parent / "cfg" / "datasets" if _SPEC and _SPEC.origin else Path()


def address(uri: Uri) -> Uri:
    """Return where a dataset is: for ultralytics://NAME its archive, otherwise the same URI.

    The archive is below the URI in the environment variable YOLOJOB_DATASETS, if that is set.

    Raises:
        BadInput: the variable is not a URI.
    """
    if uri.scheme != uris.ULTRALYTICS:
        return uri
    archive = ARCHIVES.get(uri.location, uri.location)
    return mirror.address(RELEASE, f"{archive}.zip", constants.ENV_DATASETS)


def data_file(name: str) -> Path:
    """Return Ultralytics' data file of a dataset; it does not exist for a classification, which has none.

    Its `download:` never runs: `address` says where the archive is.
    """
    return DATA_FILES / f"{name}.yaml"
