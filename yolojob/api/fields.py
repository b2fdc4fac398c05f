"""Field types whose JSON schema differs between pydantic and Kubernetes, each with its schema for the CRD."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, GetPydanticSchema, WithJsonSchema
from pydantic_core import core_schema

from yolojob.api import uri as uris
from yolojob.api.uri import Uri

MAX_COUNT = 2**53 - 1
"""Largest integer that every JSON parser keeps exactly."""
MAX_INT32 = 2**31 - 1
"""The largest integer for a count or a time in seconds, as in Kubernetes' own objects; 68 years."""
MAX_PROCESSES = 1024
"""Of one worker."""
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]

# A structural schema has no unions. A field without a type accepts any value, and `enum`, `minimum`, `pattern`…
# restrict only values of their own type, so together they describe a union.
_ANY = {"x-kubernetes-preserve-unknown-fields": True}
_INT_OR_STRING = {"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": True}
_NO_BOOLEAN: dict[str, Any] = {"not": {"enum": [True, False]}}
_NO_STRING: dict[str, Any] = {"pattern": "a^"}
_NO_OBJECT: dict[str, Any] = {"minProperties": 1, "maxProperties": 0}

# At most 32 digits and two of an exponent: every quantity is a finite number.
_QUANTITY = r"^([0-9]{1,32}(\.[0-9]{0,32})?|\.[0-9]{1,32})(([KMGTPE]i)|[numkMGTPE]|([eE][+-]?[0-9]{1,2}))?$"
_FACTORS = {
    "n": Decimal(10) ** -9,
    "u": Decimal(10) ** -6,
    "m": Decimal(10) ** -3,
    **{suffix: Decimal(1000) ** power for power, suffix in enumerate("kMGTPE", 1)},
    **{suffix + "i": Decimal(1024) ** power for power, suffix in enumerate("KMGTPE", 1)},
}


def one_of(*values: bool | str) -> WithJsonSchema:
    """Schema of a field whose values are strings and booleans (`amp: false`, `cache: ram`)."""
    return WithJsonSchema({**_ANY, "enum": list(values)})


def _member(*values: bool | str) -> BeforeValidator:
    def check(value: Any) -> Any:
        if not any(value is known or (isinstance(known, str) and value == known) for known in values):
            raise ValueError(f"must be {', '.join(str(v).lower() for v in values[:-1])} or {str(values[-1]).lower()}")
        return value

    return BeforeValidator(check)


def _true_is_auto(value: Any) -> Any:
    """Ultralytics writes `amp: true`, its default, into every args.yaml."""
    return "auto" if value is True else value


Amp = Annotated[
    bool | str,
    _member("auto", "bf16", "fp16", False),
    BeforeValidator(_true_is_auto),
    one_of("auto", "bf16", "fp16", True, False),
]
_CACHE = (True, False, "ram", "disk", "gpu")
Cache = Annotated[bool | str, _member(*_CACHE), one_of(*_CACHE)]

_COMPILE = (True, False, "default", "reduce-overhead", "max-autotune-no-cudagraphs")
Compile = Annotated[bool | str, _member(*_COMPILE), one_of(*_COMPILE)]


def _list_of_one(value: Any) -> Any:
    """Ultralytics takes a single class id for a list of one."""
    return [value] if isinstance(value, int) and not isinstance(value, bool) else value


def _number_of_images(value: Any) -> Any:
    """Ultralytics chooses the batch by the memory of a GPU for -1 and for a share such as 0.7."""
    if value in (-1, "auto") or (isinstance(value, float) and 0 < value < 1):
        raise ValueError(
            "the batch is not chosen automatically, because the result of a training depends on it: set a number of "
            "images (a batch that does not fit is trained in smaller microbatches)"
        )
    return value


Batch = Annotated[int, Field(ge=1, le=MAX_INT32), BeforeValidator(_number_of_images)]
"""A number of images."""

MAX_CLASSES = 1000
Classes = Annotated[
    list[Count],
    Field(max_length=MAX_CLASSES),
    BeforeValidator(_list_of_one),
    WithJsonSchema(
        {
            **{**_ANY, "minimum": 0, "maximum": MAX_COUNT, "multipleOf": 1, "maxItems": MAX_CLASSES},
            **{**_NO_STRING, **_NO_OBJECT, **_NO_BOOLEAN},
            "items": {"type": "integer", "minimum": 0, "maximum": MAX_COUNT},
        }
    ),
]

MAX_LAYERS = 1000
_LAYER = Annotated[int, Field(ge=0, le=MAX_COUNT)] | Annotated[str, Field(min_length=1, max_length=253)]
_LAYER_SCHEMA = {**_INT_OR_STRING, "minimum": 0, "maximum": MAX_COUNT, "minLength": 1, "maxLength": 253}
Freeze = Annotated[
    Count | Annotated[list[_LAYER], Field(max_length=MAX_LAYERS)],
    WithJsonSchema(
        {
            **{**_ANY, "minimum": 0, "maximum": MAX_COUNT, "multipleOf": 1, "maxItems": MAX_LAYERS},
            **{**_NO_STRING, **_NO_OBJECT, **_NO_BOOLEAN, "items": _LAYER_SCHEMA},
        }
    ),
]

Scale = Annotated[
    NonNegative | Annotated[list[NonNegative], Field(min_length=2, max_length=2)],
    WithJsonSchema(
        {
            **{**_ANY, "minimum": 0, "minItems": 2, "maxItems": 2, "items": {"type": "number", "minimum": 0}},
            **{**_NO_STRING, **_NO_OBJECT, **_NO_BOOLEAN},
        }
    ),
]


def parse_quantity(text: str | int | float) -> float:
    """A Kubernetes quantity as a number: cores, bytes or a count (`500m` is 0.5, `4Gi` is 4294967296).

    Raises:
        ValueError: the text is not a quantity.
    """
    text = str(text)
    if not re.fullmatch(_QUANTITY, text):
        raise ValueError("must be a quantity such as 2, 500m or 4Gi")
    match = re.fullmatch(r"([0-9.]+)(.*)", text)
    assert match is not None
    number, suffix = match.groups()
    exponent = suffix[:1] in ("e", "E") and len(suffix) > 1
    value = float(text) if exponent else float(Decimal(number) * _FACTORS.get(suffix, Decimal(1)))
    if not math.isfinite(value):
        raise ValueError("must be finite")
    return value


def _quantity(value: Any) -> str:
    if isinstance(value, float):
        raise ValueError(f'must be an integer or a string; write it as text: "{value}"')
    if isinstance(value, bool) or not isinstance(value, str | int) or (isinstance(value, int) and value > MAX_COUNT):
        raise ValueError("must be a quantity such as 2, 500m or 4Gi")
    parse_quantity(value)
    return str(value)


Quantity = Annotated[
    str,
    BeforeValidator(_quantity),
    WithJsonSchema({**_INT_OR_STRING, "minimum": 0, "maximum": MAX_COUNT, "pattern": _QUANTITY}),
]


def _auto_count(value: Any) -> Any:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_PROCESSES):
        return value
    raise ValueError(f"must be auto, or an integer of 1 to {MAX_PROCESSES}")


AutoOrCount = Annotated[
    int | str,
    BeforeValidator(_auto_count),
    WithJsonSchema({**_INT_OR_STRING, "minimum": 1, "maximum": MAX_PROCESSES, "pattern": "^auto$"}),
]


def _auto_quantity(value: Any) -> str:
    return value if value == "auto" else _quantity(value)


AutoOrQuantity = Annotated[
    str,
    BeforeValidator(_auto_quantity),
    WithJsonSchema({**_INT_OR_STRING, "minimum": 0, "maximum": MAX_COUNT, "pattern": "^auto$|" + _QUANTITY}),
]


_MAX_URI_LENGTH = 1024


def _uri(schemes: tuple[str, ...]) -> tuple[GetPydanticSchema, WithJsonSchema]:
    """Schemas of a field that is a string in JSON, and a parsed `Uri` in Python."""
    schema = core_schema.no_info_after_validator_function(
        lambda text: uris.parse(text, schemes),
        core_schema.str_schema(max_length=_MAX_URI_LENGTH),
        serialization=core_schema.to_string_ser_schema(when_used="always"),
    )
    described = {"type": "string", "maxLength": _MAX_URI_LENGTH, "pattern": uris.pattern(schemes)}
    return GetPydanticSchema(lambda *_: schema), WithJsonSchema(described)


DatasetUri = Annotated[Uri, *_uri(uris.DATASET_SCHEMES)]
WeightsUri = Annotated[Uri, *_uri(uris.WEIGHTS_SCHEMES)]
StorageUri = Annotated[Uri, *_uri(uris.STORAGE_SCHEMES)]
