"""Maps GPU types to the node labels of the platforms, by the table `data/gpus.yaml`."""

from __future__ import annotations

import functools
from importlib.resources import files

import yaml

NODE_LABELS = {
    "gke": ("cloud.google.com/gke-accelerator",),
    "product": ("nvidia.com/gpu.product",),
    "aws": ("karpenter.k8s.aws/instance-gpu-name", "eks.amazonaws.com/instance-gpu-name"),
    "instances": ("node.kubernetes.io/instance-type",),
}


@functools.cache
def table() -> dict[str, dict[str, list[str]]]:
    """Label values by GPU type and platform."""
    text = files("yolojob.catalogue").joinpath("data/gpus.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def labels(types: list[str]) -> dict[str, list[str]]:
    """The values of each node label that stand for one of these GPU types.

    A type that is not in the table is used as the label's value itself, so that new GPUs can be requested by that
    value.
    """
    known = table()
    values_by_label: dict[str, list[str]] = {}
    for kind, names in NODE_LABELS.items():
        values = [v for t in types for v in (known[t.upper()][kind] if t.upper() in known else [t])]
        for name in names:
            if values:
                values_by_label[name] = values
    return values_by_label
