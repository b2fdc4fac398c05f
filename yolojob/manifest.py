"""Public import path of manifests: `from yolojob import manifest`. The code is in `yolojob.api.manifest`."""

from yolojob.api.manifest import Fault, InvalidManifest, load, parse

__all__ = ["Fault", "InvalidManifest", "load", "parse"]
