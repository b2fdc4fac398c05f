"""GPU types by the labels under which platforms offer them; the table is `data/gpus.yaml`."""

from __future__ import annotations

import functools
from importlib.resources import files

import yaml

LABELS = {
    "gke": ("cloud.google.com/gke-accelerator",),
    "product": ("nvidia.com/gpu.product",),
    "aws": ("karpenter.k8s.aws/instance-gpu-name", "eks.amazonaws.com/instance-gpu-name"),
    "instances": ("node.kubernetes.io/instance-type",),
}


@functools.cache
def table() -> dict[str, dict[str, list[str]]]:
    """Values of each kind of label by GPU type."""
    text = files("yolojob.catalogue").joinpath("data/gpus.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def labels(types: list[str]) -> dict[str, list[str]]:
    """Label by label, the values that mean one of these GPU types.

    A type that the table does not know is taken as the value itself, so a new GPU can be asked for by its label's value.
    """
    known = table()
    out: dict[str, list[str]] = {}
    for kind, names in LABELS.items():
        values = [v for t in types for v in (known[t.upper()][kind] if t.upper() in known else [t])]
        for name in names:
            if values:
                out[name] = values
    return out
