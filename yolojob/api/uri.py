"""Where data lies: `SCHEME://LOCATION/PATH`, checked and taken apart."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

REMOTE_SCHEMES = ("s3", "gs", "https")
"""What is fetched over the network."""
DATASET_SCHEMES = ("builtin", "pvc", "file", *REMOTE_SCHEMES)
WEIGHTS_SCHEMES = ("pvc", "file", *REMOTE_SCHEMES)
STORAGE_SCHEMES = ("pvc", "file", "s3", "gs")
BUILTIN_DATASETS = ("digits",)

# No path segment is "..": what is mounted from a claim stays inside of it. RE2 has no look-around, hence the cases.
_SEGMENT = r"([^./][^/]*|\.|\.[^./][^/]*|\.\.[^/]+)?"
_BUCKET = rf"[a-z0-9]([-._a-z0-9]{{1,220}}[a-z0-9])(/{_SEGMENT})*"
_FORMS = {
    "builtin": (f"({'|'.join(BUILTIN_DATASETS)})", "builtin://digits"),
    "pvc": (rf"[a-z0-9]([-a-z0-9]{{0,61}}[a-z0-9])?(/{_SEGMENT})*", "pvc://CLAIM/PATH, without '..'"),
    "file": (r".+", "file:///FOLDER"),
    "s3": (_BUCKET, "s3://BUCKET/PATH, without '..'"),
    "gs": (_BUCKET, "gs://BUCKET/PATH, without '..'"),
    # No user and password: the address stands in the status and in logs.
    "https": (r"[A-Za-z0-9]([-.A-Za-z0-9]*[A-Za-z0-9])?(:[0-9]{1,5})?/[^\s]+", "https://HOST/PATH"),
}


@dataclass(frozen=True, kw_only=True)
class Uri:
    """A URI that was checked and taken apart."""

    text: str
    """As it was written."""
    scheme: str
    location: str
    """Claim, bucket, host or built-in name; empty for `file`."""
    path: str
    """Below the location, without slashes at its ends; for `file` the path as it was written."""

    def __str__(self) -> str:
        return self.text

    @property
    def is_remote(self) -> bool:
        """Whether it is fetched over the network."""
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
        raise ValueError(f"{self.text}: not a path of this machine")


def parse(text: str, schemes: tuple[str, ...]) -> Uri:
    """Check a URI and take it apart.

    Raises:
        ValueError: names what is wrong and what would be right.
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
    """What `parse` accepts, as one regular expression for the CRD."""
    return "^(" + "|".join(f"{scheme}://{_FORMS[scheme][0]}" for scheme in schemes) + ")$"
