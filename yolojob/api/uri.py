"""Parses URIs of data: `SCHEME://LOCATION/PATH`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

OCI = "oci"
"""Scheme of artifacts in OCI registries."""
REMOTE_SCHEMES = ("s3", "gs", "https", OCI)
"""Schemes of data that is fetched over the network."""
ULTRALYTICS = "ultralytics"
"""Scheme of datasets that Ultralytics publishes; the trainer knows their addresses."""
DATASET_SCHEMES = ("builtin", ULTRALYTICS, "pvc", "file", *REMOTE_SCHEMES)
WEIGHTS_SCHEMES = ("pvc", "file", *REMOTE_SCHEMES)
STORAGE_SCHEMES = ("pvc", "file", "s3", "gs")
BUILTIN_DATASETS = ("digits", "digits-seg", "digits-pose", "digits-obb", "digits-cls", "digits-sem", "digits-depth")
"""Digits in small scenes, for detection and for other tasks."""
ULTRALYTICS_DATASETS = (
    *("coco8", "coco8-grayscale", "coco8-pose", "coco8-seg", "coco12-formats", "coco128", "coco128-seg"),
    *("african-wildlife", "brain-tumor", "construction-ppe", "HomeObjects-3K", "kitti", "medical-pills", "signature"),
    *("carparts-seg", "crack-seg", "package-seg", "dog-pose", "hand-keypoints", "tiger-pose"),
    *("DOTAv1", "DOTAv1.5", "dota8", "dota128", "cityscapes8", "depth8", "nyu-depth"),
    *("caltech101", "caltech256", "cifar10", "cifar100", "fashion-mnist", "imagenet10", "imagenet100", "imagenette"),
    *("imagewoof", "mnist", "mnist160"),
)
"""Names of the datasets that Ultralytics publishes as one archive."""

# No path segment is "..", so that paths stay inside their claim. RE2 has no look-around, hence the alternatives.
_SEGMENT = r"([^./][^/]*|\.|\.[^./][^/]*|\.\.[^/]+)?"
_BUCKET = rf"[a-z0-9]([-._a-z0-9]{{1,220}}[a-z0-9])(/{_SEGMENT})*"
_HOST = r"[A-Za-z0-9]([-.A-Za-z0-9]*[A-Za-z0-9])?(:[0-9]{1,5})?"
_FORMS = {
    "builtin": (f"({'|'.join(BUILTIN_DATASETS)})", " or ".join(f"builtin://{name}" for name in BUILTIN_DATASETS)),
    ULTRALYTICS: (
        f"({'|'.join(re.escape(name) for name in ULTRALYTICS_DATASETS)})",
        f"{ULTRALYTICS}://NAME, where NAME is one of {', '.join(ULTRALYTICS_DATASETS)}",
    ),
    "pvc": (rf"[a-z0-9]([-a-z0-9]{{0,61}}[a-z0-9])?(/{_SEGMENT})*", "pvc://CLAIM/PATH, without '..'"),
    "file": (r".+", "file:///FOLDER"),
    "s3": (_BUCKET, "s3://BUCKET/PATH, without '..'"),
    "gs": (_BUCKET, "gs://BUCKET/PATH, without '..'"),
    # No user and password: the URI appears in the status and in logs.
    "https": (
        r"[A-Za-z0-9]([-.A-Za-z0-9]*[A-Za-z0-9])?(:[0-9]{1,5})?/[^\x00-\x20\x7f#]+(#sha256=[0-9a-f]{64})?",
        "https://HOST/PATH, perhaps with #sha256=HEX",
    ),
    OCI: (
        rf"{_HOST}/[a-z0-9]+((\.|__?|-+|/)[a-z0-9]+)*(:[A-Za-z0-9_][-.A-Za-z0-9_]{{0,127}})?"
        r"(@sha256:[0-9a-f]{64})?(#[^#\x00-\x20\x7f]+)?",
        "oci://REGISTRY/REPOSITORY:TAG, perhaps with @sha256:HEX, and with #FILE for one file",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Uri:
    """A valid URI and its parts."""

    text: str
    """The URI as the user wrote it."""
    scheme: str
    location: str
    """Claim, bucket, host or built-in name; empty for `file`."""
    path: str
    """Path below the location, without slashes at its ends; for `file`, the path unchanged."""

    def __str__(self) -> str:
        return self.text

    @property
    def is_remote(self) -> bool:
        """Whether the data is fetched over the network."""
        return self.scheme in REMOTE_SCHEMES

    def under(self, volumes: Path) -> Path:
        """The folder or file on this machine.

        Args:
            volumes: the folder in which pvc://CLAIM/PATH is CLAIM/PATH.

        Raises:
            ValueError: the URI is neither pvc:// nor file://.
        """
        if self.scheme == "pvc":
            return volumes / self.location / self.path
        if self.scheme == "file":
            return Path(self.path)
        raise ValueError(f"{self.text}: not a path on this machine")


def parse(text: str, schemes: tuple[str, ...]) -> Uri:
    """Parse a URI.

    Raises:
        ValueError: the URI is invalid; the message says what is expected.
    """
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in schemes:
        raise ValueError(f"must begin with {' or '.join(s + '://' for s in schemes)}")
    form, example = _FORMS[scheme]
    if not re.fullmatch(form, rest):
        raise ValueError(f"must look like {example}")
    if scheme == "file":
        return Uri(text=text, scheme=scheme, location="", path=rest)
    location, _, path = rest.partition("/")
    return Uri(text=text, scheme=scheme, location=location, path=path.strip("/"))


def pattern(schemes: tuple[str, ...]) -> str:
    """A regular expression that accepts the same URIs as `parse`, for the CRD."""
    return "^(" + "|".join(f"{scheme}://{_FORMS[scheme][0]}" for scheme in schemes) + ")$"
