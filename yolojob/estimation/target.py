"""Parses targets, the places where a job can be trained: `local`, a context, or a machine of the catalogue. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace

from yolojob.api.errors import UserError
from yolojob.catalogue import gpu_labels
from yolojob.catalogue.machines import Catalogue, Machine, UnknownMachine

LOCAL = "local"
PROVIDERS = {"gke": "gcp", "gcp": "gcp", "eks": "aws", "aws": "aws"}
"""Providers of the catalogue's machines, by the prefix of a target."""
_COUNT = re.compile(r"(.+?)x([1-9][0-9]*)")


@dataclass(frozen=True, kw_only=True)
class Target:
    """A place, and the number of workers."""

    text: str
    """The target as the user wrote it."""
    workers: int | None = None
    """Number of workers; None for the job's own number."""
    context: str | None = None
    """Context of the kubeconfig, for a cluster."""
    gpu: str | None = None
    """GPU type of the workers in the cluster."""
    machine: str | None = None
    """Machine of the catalogue: the rented machine, or the machine type of the cluster's nodes."""

    @property
    def is_local(self) -> bool:
        return self.context is None and self.machine is None

    @property
    def place(self) -> str:
        """The place without the number of workers: the key of stored measurements."""
        if self.context is None:
            return self.machine or LOCAL
        return f"{self.context}:{self.gpu}" if self.gpu else self.context

    @property
    def is_measurable(self) -> bool:
        """Whether a bench can run on this target."""
        return self.is_local or self.context is not None


class UnknownTarget(UserError):
    """The target does not exist; the message suggests others."""


def parse(text: str, contexts: Collection[str], catalogue: Catalogue) -> Target:
    """`local`, CONTEXT, CONTEXT:GPU, CONTEXT:MACHINE, MACHINE, gke:MACHINE or eks:MACHINE, each also with xN for N
    workers.

    Args:
        text: the target as the user wrote it.
        contexts: names of the kubeconfig's contexts.
        catalogue: the catalogue of machines.

    Raises:
        UnknownTarget: the text matches none of these; the message suggests close matches.
    """
    target = _place(text, text, contexts, catalogue)
    if target is not None:
        return target
    if match := _COUNT.fullmatch(text):
        target = _place(text, match[1], contexts, catalogue)
        if target is not None:
            return replace(target, workers=int(match[2]))
    name = (match[1] if match else text).rpartition(":")[2]
    prefix = text.rpartition(":")[0]
    if prefix and prefix not in PROVIDERS and prefix not in contexts:
        existing = ", ".join(sorted(contexts)) or "none"
        raise UnknownTarget(
            f"{text}: {prefix} is neither a context of the kubeconfig ({existing}) nor a provider (gke, eks)"
        )
    try:
        catalogue.machine(name)
    except UnknownMachine as unknown:
        places = ", ".join((LOCAL, *sorted(contexts)))
        raise UnknownTarget(f"{text}: {unknown}; or use {places}") from None
    raise UnknownTarget(f"{text}: {name} is not a machine of {prefix}")


def _place(text: str, name: str, contexts: Collection[str], catalogue: Catalogue) -> Target | None:
    if name == LOCAL:
        return Target(text=text)
    if name in contexts:
        return Target(text=text, context=name)
    prefix, colon, rest = name.rpartition(":")
    if colon and prefix in contexts:
        if rest in catalogue.machines:
            return Target(text=text, context=prefix, machine=rest)
        return Target(text=text, context=prefix, gpu=rest.upper()) if rest.upper() in gpu_labels.table() else None
    machine: Machine | None = catalogue.machines.get(rest)
    if machine is None or (colon and PROVIDERS.get(prefix, prefix) != machine.provider):
        return None
    return Target(text=text, machine=rest)
