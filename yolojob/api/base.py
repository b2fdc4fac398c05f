"""Base of all models: camelCase in JSON as in Kubernetes, snake_case in Python, unknown fields rejected."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class ApiModel(BaseModel):
    """A model that rejects unknown fields and converts no types."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        use_attribute_docstrings=True,
        # As the API server does: "2" is not an integer, and 1 is not a boolean.
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )


class LenientModel(ApiModel):
    """A message between programs of different versions: it ignores unknown fields."""

    model_config = ConfigDict(extra="ignore")
