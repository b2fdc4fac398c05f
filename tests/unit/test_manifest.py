"""A manifest is a job, or a list of faults with their field paths."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import EXAMPLES, minimal

from yolojob.api.manifest import InvalidManifest, load, parse


def faults(document: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(InvalidManifest) as caught:
        parse(document)
    return {fault.path: fault.message for fault in caught.value.faults}


def changed(path: str, value: Any) -> dict[str, Any]:
    document = copy.deepcopy(minimal())
    *parents, last = path.split(".")
    node = document
    for parent in parents:
        node = node.setdefault(parent, {})
    node[last] = value
    return document


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_examples_are_valid(path: Path) -> None:
    assert parse(load(path)).spec.train.batch > 0


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("spec.train.mosiac", 1.0, "did you mean mosaic?"),
        ("spec.train.time", 3, "activeDeadlineSeconds"),
        ("spec.workrs", {}, "did you mean workers?"),
        ("spec.train.batch", "16", "integer"),
        ("spec.train.batch", 0, "greater than or equal to 1"),
        ("spec.train.batch", True, "integer"),
        ("spec.train.amp", "fp8", "bf16"),
        ("spec.train.cache", "rom", "ram"),
        ("spec.train.lr0", float("nan"), "finite"),
        ("spec.train.fraction", 2.5, "whole number"),
        ("spec.model.name", "../../etc/passwd", "pattern"),
        ("spec.dataset.uri", "builtin://digit", "builtin://digits"),
        ("spec.dataset.uri", "ftp://x", "must begin with"),
        ("spec.dataset.uri", "pvc://claim/../other", ".."),
        ("spec.storage", {"uri": "ftp://bucket"}, None),
        ("spec.workers.replicas", 3, None),
        ("spec.workers.resources", {"requests": {"memory": "4Gx"}}, None),
        ("spec.workers.resources", {"limits": {"nvidia.com/gpu": 1}}, "spec.workers.gpu"),
        ("spec.workers.template", {"containers": []}, "metadata and spec"),
        ("spec.scheduling", {"queue": "research"}, None),
        ("spec.elastic", {"minReplicas": 4, "maxReplicas": 2}, None),
        ("metadata.name", "Digits", "DNS label"),
        ("metadata.name", "a" * 53, "52 characters"),
        ("metadata.name", "1digits", "beginning with a letter"),
    ],
)
def test_a_fault_names_its_field_and_the_way_out(path: str, value: Any, words: str | None) -> None:
    found = faults(changed(path, value))
    near = {"spec.workers.replicas": "spec.train.batch", "spec.storage": "spec.storage.uri"}
    near |= {"spec.scheduling": "spec.scheduling.queue", "spec.elastic": "spec.elastic.maxReplicas"}
    near |= {"spec.workers.resources": "spec.workers.resources"}
    expected = near.get(path, path)
    hit = next((p for p in found if p.startswith(expected)), None)
    assert hit is not None, found
    assert words is None or words in found[hit]


def test_all_faults_come_at_once() -> None:
    document = changed("spec.train.mosiac", 1.0)
    document["spec"]["train"]["batch"] = "many"
    del document["spec"]["model"]
    assert set(faults(document)) == {"spec.model", "spec.train.mosiac", "spec.train.batch"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "nothing"),
        ("kind: Pod", "Pod"),
        ("kind: [", "expected"),
        ("kind: YoloTrainingJob\nkind: YoloTrainingJob", "there twice"),
        ("kind: YoloTrainingJob\n---\nkind: YoloTrainingJob", "holds 2"),
        ("a: &a [*a]", "nested too deeply"),
        ("\x00", "special characters"),
        ("!!python/object/apply:os.system ['true']", "could not determine a constructor"),
    ],
)
def test_a_file_that_is_no_manifest(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(InvalidManifest, match=words):
        load(path)


def test_aliases_do_not_blow_up(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(InvalidManifest, match="too large"):
        load(path)


def test_yaml_is_read_as_kubectl_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("kind: YoloTrainingJob\nlr0: 1e-3\ndate: 2026-01-01\namp: off\n")
    document = load(path)
    assert document["lr0"] == 0.001
    assert document["date"] == "2026-01-01"
    assert document["amp"] is False


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidManifest, match="No such file"):
        load(tmp_path / "none.yaml")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=12,
)


@given(st.sampled_from(["spec", "metadata", "status", "spec.train", "spec.workers", "spec.train.freeze"]), json_values)
def test_nothing_breaks_the_parser(path: str, value: Any) -> None:
    try:
        job = parse(changed(path, value))
    except InvalidManifest as invalid:
        assert invalid.faults
    else:
        assert parse(job.to_json()).spec == job.spec
