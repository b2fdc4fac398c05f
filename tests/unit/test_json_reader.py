"""JSON of the API server: what nobody can work with must not end a watch."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yolojob_operator.kopf_app.kopf_patches import LineReader
from yolojob_operator.kube.json_reader import MAX_LEVELS, PRUNED, is_pruned, loads


def nested(levels: int, kind: str = "object") -> str:
    """Returns JSON of this many levels."""
    return '{"a":' * levels + '"x"' + "}" * levels if kind == "object" else "[" * levels + "]" * levels


@pytest.mark.parametrize("levels", [MAX_LEVELS + 1, 300, 1_500, 9_980])
@pytest.mark.parametrize("kind", ["object", "array"])
def test_loads_of_deep_json_keeps_everything_else(levels: int, kind: str) -> None:
    text = f'{{"before": {{"b": ["]}}\\\\", 1]}}, "deep": {nested(levels, kind)}, "after": "}}"}}'
    value = loads(text.encode())
    assert value["before"] == {"b": ["]}\\", 1]}
    assert value["after"] == "}"
    assert is_pruned(value)
    assert PRUNED in json.dumps(value)


@pytest.mark.parametrize("levels", [1, 20, MAX_LEVELS])
def test_loads_of_real_nesting_is_complete(levels: int) -> None:
    assert loads(nested(levels)) == json.loads(nested(levels))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 5_000, "[" * 3_000 + "]" * 1_000])
def test_loads_of_deep_json_without_an_end_raises_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"not end|Expecting|expected"):
        loads(text)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
)


@given(anything)
def test_loads_of_any_value_returns_it(value: Any) -> None:
    assert loads(json.dumps(value)) == value


@given(st.binary(max_size=200) | st.text(alphabet='{}[]",:\\ntru0e', max_size=60).map(str.encode))
def test_loads_of_any_bytes_equals_the_standard_decoder(data: bytes) -> None:
    """The text is too short to be nested too deeply."""
    text = data.decode("utf-8", "replace")
    try:
        expected = json.loads(text)
    except ValueError:
        with pytest.raises(ValueError, match=r".+"):
            loads(data)
    else:
        assert repr(loads(data)) == repr(expected), "by text, because NaN equals nothing"


@pytest.mark.parametrize(
    "line",
    [
        "",
        "<html>",
        "[]",
        "5",
        '{"type":"ADDED"}',
        '{"type":"ADDED","object":[]}',
        '{"type":"ADDED","object":{"metadata":5}}',
        '{"type":"ADDED","object":{"metadata":{"name":"a"}}}',
        '{"type":"ADDED","object":{"metadata":{"name":"a","uid":"u","resourceVersion":"1","labels":[]}}}',
    ],
)
def test_line_of_a_watch_that_is_no_event_has_no_effect(line: str) -> None:
    skipped: list[None] = []
    assert LineReader(lambda: skipped.append(None)).loads(line)["type"] == "BOOKMARK"
    assert len(skipped) == 1


@pytest.mark.parametrize(
    "event",
    [
        {
            "type": "ADDED",
            "object": {"metadata": {"name": "a", "uid": "u", "resourceVersion": "1", "labels": {"x": "y"}}},
        },
        {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "7"}}},
        {"type": "ERROR", "object": {"code": 410}},
    ],
)
def test_line_of_a_watch_that_is_an_event_is_returned(event: dict[str, Any]) -> None:
    skipped: list[None] = []
    assert LineReader(lambda: skipped.append(None)).loads(json.dumps(event)) == event
    assert not skipped
