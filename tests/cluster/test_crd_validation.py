"""Validation by the CRD: the API server and `yolojob validate` give the same verdict, at the same field path."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from support import minimal
from support.kube import Kube

from yolojob.api.manifest import InvalidManifest, parse

REPLICAS: dict[str, Any] = {"workers": {"replicas": 2}}
VERDICTS: dict[str, tuple[dict[str, Any], str | None]] = {
    "minimal": ({}, None),
    "all kinds": (
        {
            "train": {
                "amp": False,
                "cache": "disk",
                "freeze": [0, "23.cv2"],
                "scale": [0.1, 0.2],
                "compile": True,
                "lr0": 1,
            },
            "workers": {
                "replicas": 2,
                "gpu": {"types": ["T4"]},
                "resources": {"requests": {"cpu": 2, "memory": "4Gi"}},
            },
            "runPolicy": {"activeDeadlineSeconds": None, "suspend": True},
            "elastic": {"maxReplicas": 4},
            "dataset": {"uri": "pvc://data/./a/..b/.c/..."},
        },
        None,
    ),
    "misspelt setting": ({"train": {"mosiac": 1.0}}, "spec.train.mosiac"),
    "misspelt section": ({"worker": {}}, "spec.worker"),
    "replaced setting": ({"train": {"device": "0"}}, "spec.train.device"),
    "text for number": ({"train": {"epochs": "3"}}, "spec.train.epochs"),
    "number for text": ({"workers": {"gpu": {"types": [4]}}}, "spec.workers.gpu.types[0]"),
    "boolean for number": ({"train": {"lr0": True}}, "spec.train.lr0"),
    "out of range": ({"train": {"mosaic": 1.5}}, "spec.train.mosaic"),
    "zero": ({"train": {"epochs": 0}}, "spec.train.epochs"),
    "unknown choice": ({"train": {"optimizer": "adam"}}, "spec.train.optimizer"),
    "unknown precision": ({"train": {"amp": "fp8"}}, "spec.train.amp"),
    "weights without their place": ({"model": {"name": "cars.pt"}}, "spec.model.weights"),
    "freeze text": ({"train": {"freeze": "10"}}, "spec.train.freeze"),
    "freeze negative": ({"train": {"freeze": -1}}, "spec.train.freeze"),
    "freeze true": ({"train": {"freeze": True}}, "spec.train.freeze"),
    "freeze object": ({"train": {"freeze": {"a": 1}}}, "spec.train.freeze"),
    "scale of three": ({"train": {"scale": [1, 2, 3]}}, "spec.train.scale"),
    "fraction": ({"train": {"fraction": 2.5}}, "spec.train.fraction"),
    "uneven batch": ({"train": {"batch": 15}, **REPLICAS}, "spec.train.batch"),
    "uneven batch of gpus": ({"train": {"batch": 12}, "workers": {"gpu": {"count": 8}}}, "spec.train.batch"),
    "uneven batch of processes": ({"train": {"batch": 9}, "workers": {"processesPerWorker": 2}}, "spec.train.batch"),
    "slices of a GPU": (
        {"workers": {"gpu": {"count": 2, "resource": "nvidia.com/mig-1g.10gb"}}},
        "spec.workers.gpu.count",
    ),
    "processes": ({"workers": {"processesPerWorker": "many"}}, "spec.workers.processesPerWorker"),
    "missing dataset": ({"dataset": {}}, "spec.dataset.uri"),
    "unknown dataset": ({"dataset": {"uri": "builtin://mnist"}}, "spec.dataset.uri"),
    "path outside of the volume": ({"dataset": {"uri": "pvc://data/../x"}}, "spec.dataset.uri"),
    "absolute model": ({"model": {"name": "/etc/passwd"}}, "spec.model.name"),
    "quantity": ({"workers": {"resources": {"limits": {"memory": "4 GB"}}}}, "spec.workers.resources.limits.memory"),
    "gpu as resource": ({"workers": {"resources": {"limits": {"nvidia.com/gpu": 1}}}}, "spec.workers.resources"),
    "queue without gang": ({"scheduling": {"queue": "q"}}, "spec.scheduling.queue"),
    "maximum below minimum": (
        {"elastic": {"minReplicas": 3, "maxReplicas": 2}, "workers": {"replicas": 2}},
        "spec.elastic.maxReplicas",
    ),
    "replicas out of elastic": ({"elastic": {"maxReplicas": 2}, "workers": {"replicas": 4}}, "spec.workers.replicas"),
    "two prices": ({"pricing": {"machine": "a", "perWorkerHour": 1}}, "spec.pricing.perWorkerHour"),
}
NAMES = {
    "Upper": False,
    "under_score": False,
    "1digit": False,
    "dot.dot": False,
    "a" * 53: False,
    "a" * 52: True,
    "ok-1": True,
}


def server_side(kube: Kube, document: dict[str, Any]) -> str | None:
    """The error message of the API server; None if it accepts the manifest."""
    done = kube.run("create", "--dry-run=server", "--filename", "-", input=json.dumps(document), check=False)
    return None if done.returncode == 0 else done.stderr


def client_side(document: dict[str, Any]) -> str | None:
    """The error message of the models; None if they accept the manifest."""
    try:
        parse(document)
    except InvalidManifest as invalid:
        return str(invalid)
    return None


def mentions(message: str, path: str) -> bool:
    """Whether a message contains this field path, and not only a longer one."""
    return re.search(rf"(^|[\s\"*]){re.escape(path)}([\":\s]|$)", message) is not None


@pytest.mark.parametrize("case", VERDICTS)
def test_verdict_on_a_spec_has_the_same_path_on_both_sides(kube: Kube, case: str) -> None:
    spec, path = VERDICTS[case]
    document = minimal(**spec)
    by_server, by_client = server_side(kube, document), client_side(document)
    if path is None:
        assert by_server is None
        assert by_client is None
        return
    assert by_server is not None, "the API server accepts it"
    assert by_client is not None, "the models accept it"
    assert mentions(by_server, path), by_server
    assert mentions(by_client, path), by_client


@pytest.mark.parametrize("name", NAMES)
def test_verdict_on_a_name_is_the_same_on_both_sides(kube: Kube, name: str) -> None:
    by_server, by_client = server_side(kube, minimal(name)), client_side(minimal(name))
    assert (by_server is None, by_client is None) == (NAMES[name], NAMES[name])
    if by_server and by_client:
        assert "metadata.name" in by_server
        assert "metadata.name" in by_client


@pytest.mark.parametrize(
    ("patch", "path"),
    [
        ({"train": {"epochs": 4}}, "spec.train"),
        ({"model": {"name": "yolo26n.yaml"}}, "spec.model"),
        ({"dataset": {"uri": "pvc://other"}}, "spec.dataset"),
        ({"storage": {"uri": "pvc://other"}}, "spec.storage"),
        ({"workers": {"replicas": 4}}, "spec.workers.replicas"),
        ({"runPolicy": {"managedBy": "somebody"}}, "spec.runPolicy.managedBy"),
        ({"pricing": {"currency": "EUR"}}, "spec.pricing.currency"),
        ({"scheduling": {"gang": "kueue", "queue": "other"}}, "spec.scheduling.queue"),
        ({"scheduling": {"gang": "kueue"}}, "spec.scheduling.gang"),
    ],
)
def test_immutable_field_cannot_be_edited(kube: Kube, patch: dict[str, Any], path: str) -> None:
    kube.create(minimal(**REPLICAS))
    arguments = ("patch", "yolotrainingjob", "digits", "--type=merge", "--patch", json.dumps({"spec": patch}))
    done = kube.run(*arguments, check=False)
    assert done.returncode != 0
    assert mentions(done.stderr, path), done.stderr


def test_mutable_fields_of_a_suspended_job_can_be_edited(kube: Kube) -> None:
    kube.create(minimal(runPolicy={"suspend": True}))
    for patch in (
        {"workers": {"replicas": 4}},
        {"workers": {"template": {"metadata": {"labels": {"a": "b"}}}}},
        {"scheduling": {"gang": "kueue", "queue": "other"}},
        {"runPolicy": {"suspend": False, "ttlSecondsAfterFinished": 5}},
    ):
        kube.run("patch", "yolotrainingjob", "digits", "--type=merge", "--patch", json.dumps({"spec": patch}))
    assert kube.get("yolotrainingjob", "digits")["spec"]["workers"]["replicas"] == 4


def test_defaults_are_stored_in_the_spec(kube: Kube) -> None:
    kube.create(minimal())
    spec = kube.get("yolotrainingjob", "digits")["spec"]
    assert spec["train"] == {"amp": "auto", "batch": 16, "epochs": 100, "imgsz": 640}
    assert spec["runPolicy"]["backoffLimit"] == 3
    assert spec["checkpoint"] == {"everyEpochs": 1, "everySeconds": 300, "keep": 2}
