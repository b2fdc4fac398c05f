"""Manifests: parsed into a job, or refused with all faults and their field paths."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import EXAMPLES, minimal

from yolojob.api.manifest import InvalidManifest, load, parse


def faults(document: dict[str, Any]) -> dict[str, str]:
    """Returns the messages of an invalid manifest's faults by field path."""
    with pytest.raises(InvalidManifest) as caught:
        parse(document)
    return {fault.path: fault.message for fault in caught.value.faults}


def changed(path: str, value: Any) -> dict[str, Any]:
    """Returns the smallest manifest with another value at a field path."""
    document = copy.deepcopy(minimal())
    *parents, last = path.split(".")
    node = document
    for parent in parents:
        node = node.setdefault(parent, {})
    node[last] = value
    return document


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_parse_accepts_the_example(path: Path) -> None:
    assert parse(load(path)).spec.train.batch > 0


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("spec.train.mosiac", 1.0, "did you mean mosaic?"),
        ("spec.train.time", 3, "activeDeadlineSeconds"),
        ("spec.workrs", {}, "did you mean workers?"),
        ("spec.train.batch", "16", "integer"),
        ("spec.train.batch", 0, "greater than or equal to 1"),
        ("spec.train.batch", True, "integer"),
        ("spec.train.batch", -1, "set a number of images"),
        ("spec.train.batch", 0.7, "set a number of images"),
        ("spec.train.batch", "auto", "set a number of images"),
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
        ("metadata.name", "1digits", "starting with a letter"),
    ],
)
def test_parse_of_invalid_field_names_path_and_remedy(path: str, value: Any, message: str | None) -> None:
    messages = faults(changed(path, value))
    near = {"spec.workers.replicas": "spec.train.batch", "spec.storage": "spec.storage.uri"}
    near |= {"spec.scheduling": "spec.scheduling.queue", "spec.elastic": "spec.elastic.maxReplicas"}
    near |= {"spec.workers.resources": "spec.workers.resources"}
    expected = near.get(path, path)
    reported = next((p for p in messages if p.startswith(expected)), None)
    assert reported is not None, messages
    assert message is None or message in messages[reported]


def test_parse_reports_all_faults_together() -> None:
    document = changed("spec.train.mosiac", 1.0)
    document["spec"]["train"]["batch"] = "many"
    del document["spec"]["model"]
    assert set(faults(document)) == {"spec.model", "spec.train.mosiac", "spec.train.batch"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "nothing"),
        ("kind: Pod", "Pod"),
        ("kind: [", "expected"),
        ("%YAML 1.2\n---\nkind: YoloTrainingJob", "kubectl reads only YAML 1.1"),
        ("kind: YoloTrainingJob\n---\nkind: YoloTrainingJob", "contains 2"),
        ("a: &a [*a]", "nested too deeply"),
        ("[" * 200_000, "nested too deeply"),
        ("{a: " * 200_000, "nested too deeply"),
        ("- " * 200_000, "nested too deeply"),
        ("\x00", "control characters"),
        ("!!python/object/apply:os.system ['true']", "could not determine a constructor"),
    ],
)
def test_load_of_malformed_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(InvalidManifest, match=message):
        load(path)


def test_load_of_nested_aliases_is_refused(tmp_path: Path) -> None:
    """The file of a few lines would expand to 10^9 strings."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(InvalidManifest, match="too large"):
        load(path)


def test_load_reads_scalars_as_kubectl_does(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("kind: YoloTrainingJob\nlr0: 1e-3\ndate: 2026-01-01\namp: off\n")
    document = load(path)
    assert document["lr0"] == 0.001
    assert document["date"] == "2026-01-01"
    assert document["amp"] is False


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("1e2", 100.0), ("0x10", 16), ("010", 8), ("0o10", 8), ("1_0", 10), ("+5", 5), ("3.0", 3.0), (".5", 0.5)),
        *(("60:10", "60:10"), ("yes", True), ("on", True), ("y", True), ("N", False), ("~", None), ("'1'", "1")),
        *(("9007199254740993", 9007199254740993), ("-1", -1), ("1e400", float("inf"))),
    ],
)
def test_load_reads_this_value(tmp_path: Path, text: str, value: object) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(f"kind: YoloTrainingJob\nvalue:\t{text}\n")
    found = load(path)["value"]
    assert (found, type(found)) == (value, type(value))


def test_load_of_a_duplicate_key_takes_the_last_one_and_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("kind: YoloTrainingJob\na: 1\na: 2\n")
    assert load(path)["a"] == 2
    assert f"{path}:3:1: duplicate key 'a': the last one counts" in caplog.text


def test_load_finds_the_job_in_a_list(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("kind: List\nitems: [{kind: Pod}, {kind: YoloTrainingJob, a: 1}]\n")
    assert load(path)["a"] == 1


def test_job_with_generate_name_gets_a_name() -> None:
    document = {**minimal(), "metadata": {"generateName": "a-"}}
    names = {parse(document).metadata.name for _ in range(5)}
    assert len(names) == 5
    assert all(re.fullmatch("a-[a-z0-9]{5}", name) for name in names)


def test_load_of_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidManifest, match="No such file"):
        load(tmp_path / "none.yaml")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.sampled_from(["spec", "metadata", "status", "spec.train", "spec.workers", "spec.train.freeze"]), json_values)
def test_parse_of_any_value_returns_a_job_or_faults(path: str, value: Any) -> None:
    try:
        job = parse(changed(path, value))
    except InvalidManifest as invalid:
        assert invalid.faults
    else:
        assert parse(job.to_json()).spec == job.spec
