"""The base of all models: Kubernetes' camelCase outside, Python's snake_case inside, nothing unknown accepted."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class ApiModel(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        use_attribute_docstrings=True,
        # As the API server: "2" is no integer, 1 is no boolean.
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )


class LenientModel(ApiModel):
    """What a program says to another, which may be older: it reads what it knows."""

    model_config = ConfigDict(extra="ignore")
