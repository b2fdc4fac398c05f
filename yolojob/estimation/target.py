"""Where a job might be trained: `local`, a kubeconfig's context, or a machine of the catalogue. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace

from yolojob.api.errors import UserError
from yolojob.catalogue import gpu_labels
from yolojob.catalogue.machines import Catalogue, Machine, UnknownMachine

LOCAL = "local"
PROVIDERS = {"gke": "gcp", "gcp": "gcp", "eks": "aws", "aws": "aws"}
"""Prefixes of machines, and whose they are."""
_COUNT = re.compile(r"(.+?)x([1-9][0-9]*)")


@dataclass(frozen=True, kw_only=True)
class Target:
    """A place, and how many workers."""

    text: str
    """As it was asked for."""
    workers: int | None = None
    """None: as the job says."""
    context: str | None = None
    """Of the kubeconfig, where it is a cluster."""
    gpu: str | None = None
    """GPU type of its workers there."""
    machine: str | None = None
    """Of the catalogue: what is rented, or what the cluster's nodes are."""

    @property
    def is_local(self) -> bool:
        return self.context is None and self.machine is None

    @property
    def place(self) -> str:
        """Where it is, without the number of workers: what a measurement is kept under."""
        if self.context is None:
            return self.machine or LOCAL
        return f"{self.context}:{self.gpu}" if self.gpu else self.context

    @property
    def is_measurable(self) -> bool:
        """Whether a bench can run there."""
        return self.is_local or self.context is not None


class UnknownTarget(UserError):
    """No such place; the words offer others."""


def parse(text: str, contexts: Collection[str], known: Catalogue) -> Target:
    """`local`, CONTEXT, CONTEXT:GPU, CONTEXT:MACHINE, MACHINE, gke:MACHINE or eks:MACHINE, each also with xN for N workers.

    Args:
        text: as the user wrote it.
        contexts: of the kubeconfig.
        known: the catalogue.

    Raises:
        UnknownTarget: it is none of these; offers what is nearest.
    """
    whole = _place(text, text, contexts, known)
    if whole is not None:
        return whole
    if match := _COUNT.fullmatch(text):
        found = _place(text, match[1], contexts, known)
        if found is not None:
            return replace(found, workers=int(match[2]))
    name = (match[1] if match else text).rpartition(":")[2]
    prefix = text.rpartition(":")[0]
    if prefix and prefix not in PROVIDERS and prefix not in contexts:
        there = ", ".join(sorted(contexts)) or "none"
        raise UnknownTarget(
            f"{text}: no context {prefix} in the kubeconfig (there is {there}), and no provider: gke, eks"
        )
    try:
        known.machine(name)
    except UnknownMachine as unknown:
        places = ", ".join((LOCAL, *sorted(contexts)))
        raise UnknownTarget(f"{text}: {unknown}; or say {places}") from None
    raise UnknownTarget(f"{text}: {name} is not a machine of {prefix}")


def _place(text: str, name: str, contexts: Collection[str], known: Catalogue) -> Target | None:
    if name == LOCAL:
        return Target(text=text)
    if name in contexts:
        return Target(text=text, context=name)
    prefix, colon, rest = name.rpartition(":")
    if colon and prefix in contexts:
        if rest in known.machines:
            return Target(text=text, context=prefix, machine=rest)
        return Target(text=text, context=prefix, gpu=rest.upper()) if rest.upper() in gpu_labels.table() else None
    machine: Machine | None = known.machines.get(rest)
    if machine is None or (colon and PROVIDERS.get(prefix, prefix) != machine.provider):
        return None
    return Target(text=text, machine=rest)
