"""`yolojob validate` and the API server give the same verdict, at the same field paths, on generated manifests."""

from __future__ import annotations

import copy
import itertools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kubernetes import client, config
from support import minimal
from support.kube import Kube

from yolojob.api.crd import manifest_schema
from yolojob.api.manifest import InvalidManifest, load, parse
from yolojob.api.rules import RULES
from yolojob.api.structural import Schema, normalise_numbers

pytestmark = pytest.mark.timeout(1200)
EXAMPLES = int(os.environ.get("YOLOJOB_FUZZ_EXAMPLES", "1500"))
"""Generated manifests; a longer search is worth it after a change of the models."""

BASES: tuple[dict[str, Any], ...] = (
    {},
    {
        "workers": {
            "replicas": 2,
            "gpu": {"types": ["T4"]},
            "resources": {"requests": {"cpu": 2, "memory": "4Gi"}, "limits": {"memory": "4Gi"}},
            "template": {
                "metadata": {"labels": {"a": "b"}},
                "spec": {
                    "nodeSelector": {"zone": "a"},
                    "tolerations": [{"key": "k", "operator": "Exists"}],
                    "containers": [{"name": "trainer", "env": [{"name": "A", "value": "b"}]}],
                    "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Gi"}}],
                },
            },
        },
        "elastic": {"minReplicas": 1, "maxReplicas": 4},
        "storage": {"uri": "s3://bucket/path"},
        "model": {"name": "yolo11n.yaml", "scale": [0.5, 0.25, 512], "weights": {"uri": "pvc://w/a.pt"}},
    },
    {
        "train": {"freeze": [0, "x"], "scale": [0.1, 0.9], "classes": [0, 1], "amp": False, "fraction": 100},
        "scheduling": {"gang": "kueue", "queue": "q"},
        "pricing": {"perWorkerHour": 1.5, "currency": "EUR", "budget": 10},
        "runPolicy": {"suspend": True, "activeDeadlineSeconds": 100},
        "tuning": {"mode": "Auto"},
        "checkpoint": {"everyEpochs": 2, "keep": 3},
    },
)
HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 16, 32, 33, 640, 1000, 1001, 1024, 1025, 8192, 8193),
    *(2**31 - 1, 2**31, 2**53 - 1, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30),
    *(0.0, 0.5, -0.5, 1.0, 1.5, 16.0, 640.0, -1.0, 1e-9, 1e15, 1e30, 1e300, 99.0),
    *("", " ", "a", "A", "auto", "true", "1", "16", "1.5", "-1", "0x10", "1e2", "1e999", "500m", "4Gi", "4 Gi", "1Ei"),
    *("ram", "disk", "bf16", "fp16", "Auto", "Off", "none", "kueue", "volcano", "SGD", "AdamW", "USD", "usd", "val"),
    *("yolo11n.pt", "yolo11n.yaml", "../x", "/x", "a/b", "a//b", ".", "..", "a\n", "a\nb", "a b", "ä", "x" * 300),
    *("builtin://digits", "builtin://x", "pvc://c/p", "pvc://c/../p", "s3://bucket/p", "https://h/p", "https://h/p q"),
    *("https://h/\u00a0", "https://u:p@h/x", "file:///x", "gs://b", "gs://bucket", "pvc://C/p", "x" * 2000, "9" * 80),
    *([], {}, [[]], [{}], [None], [1], [-1], [1.5], ["a"], [True], [1, 2], [1, "a"], [0.5, 1], [0.5, -1], [1, 2, 3]),
    *({"a": 1}, {"a": None}, {"a": "b"}, {"a": {}}, {"name": "x"}, {"uri": "pvc://c/p"}, [{"name": "x"}]),
    *({f"k{i}": "1" for i in range(n)} for n in (32, 33)),
    *([1] * n for n in (16, 17, 300, 1001)),
    *([{"name": f"n{i}"} for i in range(n)] for n in (256, 257)),
)


def paths(schema: Schema, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yields the path of every field of a schema; lists and maps have one item."""
    for name, child in (schema.get("properties") or {}).items():
        yield (*path, name)
        yield from paths(child, (*path, name))
    if isinstance(schema.get("items"), dict):
        yield (*path, 0)
        yield from paths(schema["items"], (*path, 0))
    if isinstance(schema.get("additionalProperties"), dict):
        yield (*path, "a")
        yield from paths(schema["additionalProperties"], (*path, "a"))


SPEC = manifest_schema()["properties"]["spec"]
TEMPLATE_PATHS = list(paths(SPEC["properties"]["workers"]["properties"]["template"], ("workers", "template")))
SPEC_PATHS = [path for path in paths(SPEC) if path[:2] != ("workers", "template")]
FIELDS = st.one_of(
    st.sampled_from(SPEC_PATHS),
    st.sampled_from(SPEC_PATHS),
    st.sampled_from(TEMPLATE_PATHS),
    st.sampled_from(SPEC_PATHS).map(lambda path: (*path[:-1], f"{path[-1]}x")),
    st.sampled_from(TEMPLATE_PATHS).map(lambda path: (*path[:-1], f"{path[-1]}x")),
)
SCALARS = st.one_of(
    st.integers(-(2**64), 2**64),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)
FITTING: dict[str, tuple[Any, ...]] = {
    "integer": (1, 2, 16, 64.0, None),
    "number": (0, 0.25, 1, 1.0, None),
    "boolean": (True, False, None),
    "string": ("a", "x.yaml", "1", None),
    "array": ([], None),
    "object": ({}, None),
}


def schema_of(path: tuple[str | int, ...]) -> Schema:
    """The schema of a field; empty if it has none."""
    schema = SPEC
    for part in path:
        if part == 0:
            schema = schema.get("items") or {}
        else:
            schema = (schema.get("properties") or {}).get(part) or schema.get("additionalProperties") or {}
    return dict(schema)


def values(path: tuple[str | int, ...]) -> st.SearchStrategy[Any]:
    """Values for a field: some that fit it, those at its limits, and hostile ones."""
    schema = schema_of(path)
    near = [limit + step for limit in (schema.get("minimum"), schema.get("maximum")) if limit for step in (-1, 0, 1)]
    fitting = [*schema.get("enum", ()), *FITTING.get(schema.get("type", ""), ()), *near]
    hostile = st.one_of(st.sampled_from(HOSTILE), SCALARS)
    return st.one_of(st.sampled_from(fitting), st.sampled_from(fitting), hostile) if fitting else hostile


CHANGES = st.lists(FIELDS.flatmap(lambda path: st.tuples(st.just(path), values(path))), max_size=3)


def put(target: Any, path: tuple[str | int, ...], value: Any) -> None:
    """Sets a value, and makes the objects and lists above it, if nothing else is there."""
    for part, following in itertools.pairwise(path):
        empty: Any = [] if isinstance(following, int) else {}
        if isinstance(target, dict) and isinstance(part, str):
            target = target.setdefault(part, empty)
        elif isinstance(target, list) and isinstance(part, int):
            if not target:
                target.append(empty)
            target = target[0]
        else:
            return
    if isinstance(target, dict) and isinstance(path[-1], str):
        target[path[-1]] = value
    elif isinstance(target, list):
        target[:1] = [value]


class Server:
    """Asks the API server about manifests, without storing them."""

    def __init__(self, kube: Kube) -> None:
        access = client.Configuration()
        config.load_kube_config(str(kube.kubeconfig), client_configuration=access)
        self._pool = urllib3.PoolManager(
            ca_certs=access.ssl_ca_cert,
            cert_file=access.cert_file,
            key_file=access.key_file,
            cert_reqs="CERT_REQUIRED" if access.verify_ssl else "CERT_NONE",
        )
        path = f"/apis/yolojob.dev/v1alpha1/namespaces/{kube.namespace}/yolotrainingjobs"
        self._url = f"{access.host}{path}?dryRun=All&fieldValidation=Strict"

    def refusal(self, document: dict[str, Any]) -> tuple[bool, set[str], str]:
        """(whether the manifest is refused, the field paths that the answer names, the answer)."""
        headers = {"Content-Type": "application/json"}
        response = self._pool.request("POST", self._url, body=json.dumps(document), headers=headers, timeout=60)
        answer = json.loads(response.data)
        if response.status < 300:
            return False, set(), ""
        assert response.status in (400, 422), answer
        causes = (answer.get("details") or {}).get("causes") or ()
        if any(not is_rule(cause) for cause in causes):
            # `yolojob validate` checks the rules between fields when each field by itself is correct.
            causes = [cause for cause in causes if not is_rule(cause)]
        # Paths with a leading dot repeat an error for the scale subresource.
        fields = {c["field"] for c in causes if c.get("field", "<nil>") != "<nil>" and not c["field"].startswith(".")}
        fields |= set(re.findall(r'unknown field "([^"]+)"', answer["message"]))
        return True, {plain(field) for field in fields}, answer["message"]


def is_rule(cause: dict[str, Any]) -> bool:
    """Whether a cause is the violation of a rule between fields."""
    return any(rule.message in cause["message"] for rule in RULES)


def plain(path: str) -> str:
    """A path in one notation: limits[memory] is limits.memory."""
    return re.sub(r"\[([^\]0-9][^\]]*)\]", r".\1", path)


def faults(document: dict[str, Any]) -> set[str]:
    """The field paths that `yolojob validate` names."""
    try:
        parse(copy.deepcopy(document))
    except InvalidManifest as invalid:
        return {plain(fault.path) for fault in invalid.faults} or {"?"}
    return set()


def compare(server: Server, document: dict[str, Any]) -> None:
    refused, fields, answer = server.refusal(document)
    ours = faults(document)
    assert refused == bool(ours), (ours, answer)
    assert fields <= ours, (fields - ours, ours, answer)


def rendered(document: Any) -> Any:
    """The document as kubectl sends it."""
    return normalise_numbers(json.loads(json.dumps(document)))


def test_specs_have_the_same_verdict(kube: Kube) -> None:
    server = Server(kube)

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize="YOLOJOB_FUZZ_EXAMPLES" not in os.environ,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(BASES), CHANGES)
    def check(base: dict[str, Any], changes: list[tuple[tuple[str | int, ...], Any]]) -> None:
        document = copy.deepcopy(minimal(**base))
        for path, value in changes:
            put(document["spec"], path, copy.deepcopy(value))
        compare(server, rendered(document))

    check()


METADATA: tuple[dict[str, Any], ...] = (
    {"name": "a"},
    {"generateName": "a-"},
    {"generateName": "a" * 47},
    {"generateName": "a" * 48},
    {"generateName": "-a"},
    {},
    *({"name": "a", key: None} for key in ("labels", "annotations", "namespace", "finalizers", "ownerReferences")),
    *({"name": "a", "labels": {key: "v"}} for key in ("a", "a/b", "A.b/c", "a b", "", "/a", "a/", "a" * 64, "a/b/c")),
    *({"name": "a", "labels": {"k": value}} for value in ("", "a", "a b", "-a", "a-", "a" * 63, "a" * 64, "ä")),
    *({"name": "a", "annotations": {key: "v"}} for key in ("a", "A.b/c", "a b", "", "A" * 63, "A" * 64)),
    {"name": "a", "annotations": {"a": "x" * (256 << 10)}},
    {"name": "a", "annotations": {"a": "x" * ((256 << 10) - 1)}},
    {"name": "a", "finalizers": ["a/b"]},
    {"name": "a", "finalizers": ["a b/c"]},
    {"name": "a", "lables": {}},
    {"name": "a", "labels": {"a": 1}},
    {"name": "a", "labels": {"a": True}},
    {"name": "a", "labels": []},
    {"name": "a", "labels": {"a": None}},
    {"name": 1},
    {"name": ""},
    {"name": None},
    {"name": "a", "creationTimestamp": None},
    {"name": "a", "ownerReferences": [{"kind": "x"}]},
    {"name": "a", "uid": "x", "resourceVersion": "", "generation": 3},
)


@pytest.mark.parametrize("number", range(len(METADATA)))
def test_metadata_has_the_same_verdict(kube: Kube, number: int) -> None:
    document = {**minimal(), "metadata": METADATA[number]}
    refused, _, answer = Server(kube).refusal(document)
    assert refused == bool(faults(document)), (faults(document), answer)


ENVELOPES: tuple[dict[str, Any], ...] = (
    {"apiVersion": None},
    {"apiVersion": "yolojob.dev/v1"},
    {"kind": "Job"},
    {"kind": None},
    {"spec": None},
    {"spec": []},
    {"metadata": None},
    {"status": None},
    {"status": {"phase": "x"}},
    {"extra": 1},
)


@pytest.mark.parametrize("number", range(len(ENVELOPES)))
def test_envelopes_have_the_same_verdict(kube: Kube, number: int) -> None:
    document = {**minimal(), **ENVELOPES[number]}
    refused, _, answer = Server(kube).refusal(document)
    assert refused == bool(faults(document)), (faults(document), answer)


TEXTS = (
    *("1e2", "0x10", "010", "0o10", "1_0", "+5", "3.0", "60:10"),
    *("yes", "on", "y", "N", "~", "'1'", "4\n    epochs: 5"),
)


@pytest.mark.parametrize("number", range(len(TEXTS)))
def test_yaml_is_read_as_kubectl_reads_it(kube: Kube, tmp_path: Path, number: int) -> None:
    path = tmp_path / "job.yaml"
    document = {**minimal(), "spec": {**minimal()["spec"], "train": {"epochs": "PLACE"}}}
    path.write_text(yaml.safe_dump(document).replace("PLACE", TEXTS[number]))
    done = kube.run("create", "--dry-run=server", "--output", "json", "--filename", str(path), check=False)
    try:
        ours = parse(load(path)).spec.train.epochs
    except InvalidManifest as invalid:
        assert done.returncode != 0, invalid
    else:
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["spec"]["train"]["epochs"] == ours
