"""Field types whose JSON schema pydantic and Kubernetes do not spell alike, each with the schema of the CRD."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from yolojob.api import uri as uris

# A structural schema has no unions. A field without a type keeps whatever comes, and `enum`, `minimum`, `pattern`…
# bind only values of their own type, so together they describe a union after all.
_ANY = {"x-kubernetes-preserve-unknown-fields": True}
_INT_OR_STRING = {"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": True}
_NO_BOOLEAN: dict[str, Any] = {"not": {"enum": [True, False]}}
_NO_STRING: dict[str, Any] = {"pattern": "a^"}
_NO_OBJECT: dict[str, Any] = {"minProperties": 1, "maxProperties": 0}

_QUANTITY = r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)(([KMGTPE]i)|[numkMGTPE]|([eE][+-]?[0-9]+))?$"
_FACTORS = {
    "n": Decimal(10) ** -9,
    "u": Decimal(10) ** -6,
    "m": Decimal(10) ** -3,
    **{suffix: Decimal(1000) ** power for power, suffix in enumerate("kMGTPE", 1)},
    **{suffix + "i": Decimal(1024) ** power for power, suffix in enumerate("KMGTPE", 1)},
}


def one_of(*values: bool | str) -> WithJsonSchema:
    """Schema of a field that takes some words and booleans (`amp: false`, `cache: ram`)."""
    return WithJsonSchema({**_ANY, "enum": list(values)})


def _member(*values: bool | str) -> BeforeValidator:
    def check(value: Any) -> Any:
        if not any(value is known or (isinstance(known, str) and value == known) for known in values):
            raise ValueError(f"must be {', '.join(str(v).lower() for v in values[:-1])} or {str(values[-1]).lower()}")
        return value

    return BeforeValidator(check)


Amp = Annotated[bool | str, _member("auto", "bf16", "fp16", False), one_of("auto", "bf16", "fp16", False)]
Cache = Annotated[bool | str, _member(True, False, "ram", "disk"), one_of(True, False, "ram", "disk")]

_COMPILE = (True, False, "default", "reduce-overhead", "max-autotune-no-cudagraphs")
Compile = Annotated[bool | str, _member(*_COMPILE), one_of(*_COMPILE)]


def _freeze(value: int | list[int | str]) -> int | list[int | str]:
    if isinstance(value, int) and value < 0:
        raise ValueError("must be a number of layers, or a list of layers")
    return value


Freeze = Annotated[
    int | list[int | str],
    AfterValidator(_freeze),
    WithJsonSchema({**_ANY, "minimum": 0, **_NO_STRING, **_NO_OBJECT, **_NO_BOOLEAN}),
]

Scale = Annotated[
    float | Annotated[list[float], Field(min_length=2, max_length=2)],
    WithJsonSchema({**_ANY, "minimum": 0, "minItems": 2, "maxItems": 2, **_NO_STRING, **_NO_OBJECT, **_NO_BOOLEAN}),
]


def parse_quantity(text: str | int | float) -> float:
    """A Kubernetes quantity as a number: cores, bytes or a count (`500m` is 0.5, `4Gi` is 4294967296).

    Raises:
        ValueError: the text is no quantity.
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
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("must be a quantity such as 2, 500m or 4Gi")
    parse_quantity(value)
    return str(value)


Quantity = Annotated[
    str,
    BeforeValidator(_quantity),
    WithJsonSchema({**_INT_OR_STRING, "pattern": _QUANTITY}),
]


def _auto_count(value: Any) -> Any:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError("must be auto or a number of at least 1")


AutoOrCount = Annotated[
    int | str,
    BeforeValidator(_auto_count),
    WithJsonSchema({**_INT_OR_STRING, "minimum": 1, "pattern": "^auto$"}),
]


def _auto_quantity(value: Any) -> str:
    return value if value == "auto" else _quantity(value)


AutoOrQuantity = Annotated[
    str,
    BeforeValidator(_auto_quantity),
    WithJsonSchema({**_INT_OR_STRING, "pattern": "^auto$|" + _QUANTITY}),
]


def _checked(schemes: tuple[str, ...]) -> tuple[AfterValidator, WithJsonSchema]:
    def check(value: str) -> str:
        uris.parse(value, schemes)
        return value

    schema = {"type": "string", "maxLength": 1024, "pattern": uris.pattern(schemes)}
    return AfterValidator(check), WithJsonSchema(schema)


_dataset_check, _dataset_schema = _checked(uris.DATASET_SCHEMES)
_weights_check, _weights_schema = _checked(uris.WEIGHTS_SCHEMES)
_storage_check, _storage_schema = _checked(uris.STORAGE_SCHEMES)
DatasetUri = Annotated[str, Field(max_length=1024), _dataset_check, _dataset_schema]
WeightsUri = Annotated[str, Field(max_length=1024), _weights_check, _weights_schema]
StorageUri = Annotated[str, Field(max_length=1024), _storage_check, _storage_schema]
