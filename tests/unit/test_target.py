"""Targets of `--on`: this machine, a context of the kubeconfig, a machine of the catalogue."""

from __future__ import annotations

import pytest
from support.bench_data import estimator

from yolojob.catalogue import machines
from yolojob.estimation import target
from yolojob.estimation.estimator import CannotEstimate
from yolojob.estimation.target import Target, UnknownTarget

CONTEXTS = ["kind-one", "prod", "boxx2"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("local", Target(text="local")),
        ("localx4", Target(text="localx4", workers=4)),
        ("prod", Target(text="prod", context="prod")),
        ("prodx2", Target(text="prodx2", context="prod", workers=2)),
        ("boxx2", Target(text="boxx2", context="boxx2")),
        ("prod:t4x2", Target(text="prod:t4x2", context="prod", gpu="T4", workers=2)),
        ("prod:g5.xlarge", Target(text="prod:g5.xlarge", context="prod", machine="g5.xlarge")),
        ("g2-standard-4", Target(text="g2-standard-4", machine="g2-standard-4")),
        ("gke:g2-standard-4x2", Target(text="gke:g2-standard-4x2", machine="g2-standard-4", workers=2)),
        ("eks:g4dn.xlargex8", Target(text="eks:g4dn.xlargex8", machine="g4dn.xlarge", workers=8)),
    ],
)
def test_parse_returns_target(text: str, expected: Target) -> None:
    assert target.parse(text, CONTEXTS, machines.builtin()) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("g2-standart-4", "it has g2-standard-4"),
        ("gke:g5.xlarge", "g5.xlarge is not a machine of gke"),
        ("nowhere:g5.xlarge", "nowhere is neither a context of the kubeconfig (boxx2, kind-one, prod) nor a provider"),
        ("kind-on", "or use local, boxx2, kind-one, prod"),
        ("", "the catalogue has no machine"),
        ("prod:", "the catalogue has no machine"),
        ("localx0", "the catalogue has no machine"),
    ],
)
def test_parse_of_unknown_target_names_the_choices(text: str, message: str) -> None:
    with pytest.raises(UnknownTarget) as error:
        target.parse(text, CONTEXTS, machines.builtin())
    assert message in str(error.value)


def test_option_of_unmeasured_cluster_names_the_bench_command() -> None:
    with pytest.raises(CannotEstimate, match="yolojob bench FILE --on prod"):
        estimator().option(Target(text="prod", context="prod"))
