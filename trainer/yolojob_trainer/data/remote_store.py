"""Opens the storage behind a URI."""

from __future__ import annotations

from yolojob.api.uri import OCI, Uri
from yolojob_trainer.data.object_store import ObjectStore
from yolojob_trainer.data.oci_store import OciStore


def open_store(uri: Uri, field: str) -> ObjectStore:
    """Return the storage of a dataset or of weights.

    Args:
        uri: of a remote scheme.
        field: the field of the specification that holds the URI, for messages.
    """
    return OciStore(uri, field) if uri.scheme == OCI else ObjectStore(str(uri), field)
