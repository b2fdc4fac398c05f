"""Addresses of files that Ultralytics publishes, and of mirrors of them."""

from __future__ import annotations

import os

from yolojob.api import uri as uris
from yolojob.api.reasons import Reason
from yolojob.api.uri import Uri
from yolojob_trainer.errors import BadInput

RELEASES = "https://github.com/ultralytics/assets/releases/download"


def address(release: str, file: str, variable: str, sha256: str | None = None) -> Uri:
    """Return the address of a file.

    Args:
        release: of Ultralytics' assets, such as v8.4.0.
        file: its name.
        variable: environment variable with the URI of the folder, or of the artifact in an OCI registry, that holds a
            copy, if it is set.
        sha256: that the content must have, in hexadecimal, if it is known.

    Raises:
        BadInput: the variable is not a URI.
    """
    folder = os.environ.get(variable) or f"{RELEASES}/{release}"
    digest = f"#sha256={sha256}" if sha256 and folder.startswith("https://") else ""
    separator = "#" if folder.startswith(f"{uris.OCI}://") else "/"
    try:
        return uris.parse(f"{folder.rstrip('/')}{separator}{file}{digest}", uris.WEIGHTS_SCHEMES)
    except ValueError as error:
        raise BadInput(Reason.INVALID_ENVIRONMENT, f"{variable}: {folder}: {error}") from None
